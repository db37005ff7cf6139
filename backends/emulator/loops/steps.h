/* What every loop takes. This file is the one place that says so: C compiles it, and Python reads
   it (call.py beside this file) to lay arguments out and to refuse tensors of another type or size.

   A field is eight bytes wide. A pointer's comment gives its dims, in fields and constants ("*" for
   as many as there are), and may say "or NULL". Numbers ending in _r and _c are how far the rows
   and the columns of a mesh lie apart in an operand, in values: 0 where they share it. */

#ifndef STEPS_H
#define STEPS_H
#include <stdint.h>

#define BLOCK 16         /* values that share one exponent; widths are multiples of it */
#define TILE 32          /* columns of a weight that lie together, and width of a tile */
#define FEW 4            /* rows multiplied while weights are unpacked; more find them in a cache */
#define STRETCH 8        /* pairs of depth whose exponents memory hands over at once */
#define MOST_SUMMED 32   /* products that are summed on their way out, */
#define SUMMED_ROWS 192  /* of as many rows at once: a multiple of all that are multiplied at once */
#define MOST_LARGEST 64  /* of a row that are sorted */
#define MOST_QUERIES 4   /* of decode attention, whose vectors stay in registers */
#define MOST_WIDTH 256   /* of a head */
#define MOST_GROUP 256   /* heads that share one of keys */
#define PROMPT_KEYS 64   /* keys of a prompt whose softmax weights are made at once */
#define PROMPT_ROWS 8    /* of them that are multiplied at once */

/* x in blocks, rounded to `mantissa_bits`, or to bfloat16 (none). */
struct round_blocks {
  const void *x; /* [blocks, BLOCK] bfloat16, or float where is_wide */
  uint16_t *out; /* [blocks, BLOCK] */
  int64_t blocks, mantissa_bits, is_wide;
};

/* Blocks down the columns of x rounded as the host's conversion rounds them, in which the alignment
   of float values shifts bits out before they are rounded, and zeros are positive. Refuses blocks
   whose exponents call for more care. */
struct round_columns {
  const void *x; /* [groups, BLOCK, width] bfloat16, or float where is_wide */
  uint16_t *out; /* [groups, BLOCK, width] */
  int64_t groups, width, mantissa_bits, is_wide;
};

/* Of every value the bits that `mask` keeps. */
struct cut_bits {
  const uint16_t *x; /* [count] */
  uint16_t *out;     /* [count] */
  int64_t count, mask;
};

/* x + y in float, as the result's format holds it. */
struct add_blocks {
  const uint16_t *x; /* [blocks, BLOCK] */
  const uint16_t *y; /* [blocks, BLOCK] */
  uint16_t *out;     /* [blocks, BLOCK] */
  int64_t blocks, mantissa_bits;
};

/* x + y; or x + 1, of numbers below zero x itself where those are skipped. */
struct add_integers {
  const int32_t *x; /* [count] */
  const int32_t *y; /* [count] or NULL */
  int32_t *out;     /* [count] */
  int64_t count, skips_negative;
};

/* silu(x) y, each step rounded to bfloat16, then as the result's format holds it. */
struct silu_multiply {
  const uint16_t *x; /* [rows, across, BLOCK] */
  const uint16_t *y; /* [rows, across, BLOCK] */
  uint16_t *out;     /* [rows, across, BLOCK] */
  int64_t rows, across, mantissa_bits;
};

/* The sum of squares of every row, in the first column of a tile. */
struct sum_squares {
  const uint16_t *x; /* [rows, width] */
  uint16_t *out;     /* [rows, TILE] */
  int64_t rows, width;
};

/* Rows of x divided by their root mean square, times a weight. Sums of squares are the row's own,
   or in the first columns of the tiles of `sums`, whose rows and tiles lie `sums_row` and `sums_tile`
   apart; `share` of them is the mean. Results are as their
   format holds them. */
struct rms_norm {
  const uint16_t *x;    /* [chips, rows, width] */
  const float *weight;  /* [*, width], of one or of all chips, or NULL */
  const uint16_t *sums; /* [*, rows, tiles, TILE], of one or of all chips, or NULL */
  uint16_t *out;        /* [chips, rows, width] */
  int64_t chips, rows, width, tiles, has_weights, has_sums, sums_row, sums_tile, mantissa_bits;
  double share, epsilon;
};

/* Neighbours (a, b) of x turned to (a cos - b sin, b cos + a sin). There are `tables` for the outer
   ones to take in turns; every row of x has its own of the table (per_row 1) or all the first. Rows
   lie `stride` apart, each `some` matrices `beside` each other and those groups `apart`. */
struct rotate {
  const uint16_t *x;      /* strided */
  const uint16_t *cosine; /* [tables, per_table, width] */
  const uint16_t *sine;   /* [tables, per_table, width] */
  uint16_t *out;          /* [outer, inner, width] */
  int64_t outer, inner, width, tables, per_table, per_row, stride, some, beside, apart;
};

/* The `most` largest of every row, largest first and then by place; rows lie `apart`. Refuses what
   is no number. */
struct largest_first {
  const uint16_t *x; /* strided */
  uint16_t *values;  /* [rows, most] */
  int32_t *places;   /* [rows, most] */
  int64_t rows, width, apart, most;
};

/* Of every row the number in `places` at its largest value, the first of equal ones. Refuses where
   `most` asks for others than the largest, and what is no number. */
struct best_of {
  const uint16_t *x;     /* [rows, width] */
  const int32_t *places; /* [rows, width] */
  const int32_t *most;   /* [rows] */
  int32_t *out;          /* [rows] */
  int64_t rows, width;
};

/* Sum of x over the places, as its format holds it, its columns dealt out to `parts`. */
struct sum_places {
  const uint16_t *x; /* [outer, places, rows, width] */
  uint16_t *out;     /* [outer, rows, width], parts before rows */
  int64_t outer, places, rows, width, parts, mantissa_bits;
};

/* Values moved from one arrangement to another: four sizes and, in bytes, how far each takes one in
   x and in out; `bytes` lie together. */
struct copy {
  const void *x; /* strided */
  void *out;     /* strided */
  int64_t size0, size1, size2, size3, x0, x1, x2, x3, out0, out1, out2, out3, bytes;
};

/* Zeros. */
struct clear {
  void *out; /* strided */
  int64_t bytes;
};

/* Rows of each chip's table, which lie `apart`, by its numbers. Refuses numbers beyond it. */
struct gather_rows {
  const uint16_t *table; /* strided */
  const int32_t *ids;    /* strided */
  uint16_t *out;         /* [chips, count, width] */
  int64_t chips, cols, rows, count, width, apart, table_r, table_c, ids_r, ids_c;
};

/* Whether every user's position lies in the pages it has, and those in the cache; else refused. */
struct check_pages {
  const int32_t *positions; /* strided */
  const int32_t *table;     /* strided */
  int64_t rows, cols, users, pages, blocks, size, at_r, at_c, table_r, table_c;
};

/* Where the first pages of `users` of a table lie in the caches of all chips, -1 where there is none.
   Refuses users beyond the table, and pages beyond the cache. */
struct find_pages {
  const int32_t *table; /* strided */
  const int32_t *users; /* strided */
  int64_t *pages;       /* [chips, some, count] */
  int64_t chips, cols, some, count, all, width, blocks, table_r, table_c, users_r, users_c;
};

/* One row per head of every user put where its position lies, as the cache's format holds it. Users
   below position zero, or without a page there, are left out, and chips whose first in `chain` is -1:
   theirs are zeros in a cache of zeros. Checked by check_pages. */
struct put_positions {
  uint16_t *cache;          /* [rows, cols, blocks, heads, size, width] */
  const uint16_t *x;        /* strided */
  const int32_t *positions; /* strided */
  const int32_t *table;     /* strided, or NULL: the block is the user */
  const int64_t *chain;     /* [2, rows, cols], or NULL */
  int64_t rows, cols, users, heads, width, pages, blocks, size, mantissa_bits;
  int64_t x_r, x_c, x_user, at_r, at_c, table_r, table_c;
};

/* Prompts put into pages: chip c, of which `sources` says whose x it takes, wants them at `pages`,
   not those below zero. Refuses pages beyond the table. */
struct put_pages {
  uint8_t *table;         /* [total, heads, bytes] */
  const int64_t *pages;   /* [chips, users, count] */
  const int64_t *sources; /* [chips] */
  const uint8_t *x;       /* [*, users, heads, count, bytes] */
  int64_t total, chips, users, heads, count, bytes;
};

/* Refuses unless of the rows those in each of the pairs are the same, or zeros where one is -1. */
struct all_equal {
  const uint8_t *rows;  /* [total, bytes] */
  const int64_t *pairs; /* [count, 2] */
  int64_t total, count, bytes;
};

/* Weights as their format stores them: for each pair of rows of a tile's depth `packed` bytes of
   mantissas (64: of 7 bits and a sign, 32: of 3), and what to subtract from the exponents of two
   blocks of two rows. Of the weights the bits count that `mask` keeps. Refuses weights of more bits
   in a block, and large ones. */
struct pack_tiles {
  const uint16_t *tiles; /* [count, TILE, depth] */
  uint8_t *mantissas;    /* [count, pairs, packed] */
  uint32_t *exponents;   /* [count, pairs, 2] */
  int64_t count, depth, pairs, packed, mask;
};

/* The values of packed tiles, of which `spans` says the first pair and how many there are; zeros
   after those. */
struct unpack_tiles {
  const uint8_t *mantissas;  /* [*, packed] */
  const uint32_t *exponents; /* [*, 2] */
  const int64_t *spans;      /* [count, 2] */
  uint16_t *tiles;           /* [count, TILE, depth] */
  int64_t count, depth, packed;
};

/* Products of rows with weights in tiles of columns: for each tile the place it belongs to, its
   pairs of depth, which pair is its first, its first goal and the one after its last; a goal is a
   chip and a first column. Weights are packed, or bfloat16 in pairs. A processor's cache holds
   `panel` rows. Sums pass through bfloat16 unless `is_wide`. Unless `sum_bits` is -1, tiles in a row
   with the same goals, of which there are up to `summed`, give those the sum of their rounded
   products, rounded to that; not of few rows. Of few rows `known` is one of each place whose results
   are known, too. Rows may come in strips of depth, `span` wide, of whole stretches; not few rows. */
struct multiply {
  const uint16_t *x;         /* [places, rows, depth], or with depth / span strips before rows */
  const uint32_t *weights;   /* [*, TILE] pairs of rows, or NULL */
  const uint8_t *mantissas;  /* [*, packed] pairs of rows, or NULL */
  const uint32_t *exponents; /* [*, 2] or NULL */
  uint32_t *room;            /* [threads, most_pairs, TILE] to unpack in, or NULL */
  float *wide;               /* [threads, summed, *, depth] for rows as floats: a panel, and TILE more */
  const int64_t *tiles;    /* [count, 5] */
  const int64_t *goals;    /* [*, 2] */
  const uint16_t *known;         /* [places, depth] or NULL */
  const uint16_t *known_results; /* [chips, width] or NULL */
  uint16_t *out;           /* [chips, rows, width] */
  int64_t places, count, chips, rows, depth, span, width, mantissa_bits, is_wide, panel;
  int64_t threads, most_pairs, packed, summed, sum_bits;
};

/* Decode attention: queries of every user, scaled, over the keys and values that its position lets
   it see (the last `window`, if not 0) in pages. Users below position zero get zeros; an entry below
   zero reads as page 0. The multiplier sees the bits of `q_seen` of queries, and of `seen` of keys
   and values. `chain` says which chips have the same pages: the first of them (-1: theirs are
   zeros), and the next one (or -1). Chips' caches lie `apart`. Checked by check_pages. */
struct attend {
  const uint16_t *q;        /* strided */
  const uint16_t *keys;     /* strided */
  const uint16_t *values;   /* strided */
  const int32_t *positions; /* strided */
  const int32_t *table;     /* strided */
  const int64_t *chain;     /* [2, rows, cols] */
  uint16_t *out;            /* [rows, cols, users, heads, group, width] */
  float *room;              /* [threads, MOST_QUERIES, pages, size] to work in */
  int64_t rows, cols, users, heads, group, width, pages, apart, size, window, q_seen, seen, threads;
  int64_t q_r, q_c, at_r, at_c, table_r, table_c;
  double scale;
};

/* Keys of prompts as integers, PROMPT_ROWS side by side, a word for two neighbours of a head's width,
   and what a unit of each key is. Keys after the last are zeros. Refuses numbers beyond all measure. */
struct arrange_keys {
  const uint16_t *x; /* [matrices, length, width] */
  uint32_t *out;     /* [matrices, groups, half, PROMPT_ROWS] */
  float *units;      /* [matrices, groups, PROMPT_ROWS] */
  int64_t matrices, length, width, groups, half;
};

/* Values of prompts as integers, a word for two keys, for PROMPT_KEYS at once PROMPT_ROWS columns
   side by side, and for each key the power of two that they are below, and one over that. Refuses
   like arrange_keys. */
struct arrange_values {
  const uint16_t *x; /* [matrices, length, width] */
  uint32_t *out;     /* [matrices, pairs, width] */
  float *exponents;  /* [matrices, pairs, 2] */
  float *shrinks;    /* [matrices, pairs, 2] */
  int64_t matrices, length, width, pairs;
};

/* Of every row whether it is all zeros. */
struct find_zeros {
  const uint16_t *x; /* [rows, width] */
  int32_t *out;      /* [rows] */
  int64_t rows, width;
};

/* Attention of prompts, whose queries begin at position `start`, over keys and values arranged for
   it, PROMPT_KEYS at once: `group` neighbours share a head of those. Causal ones see the last
   `window` keys up to their own, if not 0. To the queries of `idle` heads, which are zeros, all keys
   count alike: they get the mean of what they see of `plain` values. Refuses like arrange_keys. */
struct attend_prompt {
  const uint16_t *q;      /* [heads, group, length, width] */
  const int32_t *idle;    /* [heads, group] */
  const uint16_t *plain;  /* [heads, total, width] */
  const uint32_t *keys;   /* [heads, tiles, PROMPT_KEYS, half] */
  const float *units;     /* [heads, tiles, PROMPT_KEYS] */
  const uint32_t *values; /* [heads, tiles, PROMPT_KEYS, half] */
  const float *exponents; /* [heads, tiles, PROMPT_KEYS] */
  const float *shrinks;   /* [heads, tiles, PROMPT_KEYS] */
  uint16_t *out;          /* [heads, group, length, width] */
  int64_t heads, group, length, width, total, start, window, is_causal, tiles, half;
  double scale;
};

#endif
