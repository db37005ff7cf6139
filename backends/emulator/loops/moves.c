/* Loops that put values elsewhere: nothing is computed, places are. */

#include "blocks.h"

void copy(const void *given, Share *share) {
  ARGUMENTS(copy);
  const int64_t rows = a.size0 * a.size1 * a.size2;
  EACH(r, rows, a.size3 * a.bytes / 2) {
    const int64_t i = r / a.size2 / a.size1, j = r / a.size2 % a.size1, k = r % a.size2;
    const uint8_t *from = (const uint8_t *)a.x + i * a.x0 + j * a.x1 + k * a.x2;
    uint8_t *to = (uint8_t *)a.out + i * a.out0 + j * a.out1 + k * a.out2;
    if (a.bytes == 2)
      for (int64_t n = 0; n < a.size3; n++) memcpy(to + n * a.out3, from + n * a.x3, 2);
    else
      for (int64_t n = 0; n < a.size3; n++)
        memcpy(to + n * a.out3, from + n * a.x3, (size_t)a.bytes);
  }
}

#define CLEARED 8192 /* bytes */

void clear(const void *given, Share *share) {
  ARGUMENTS(clear);
  EACH(i, (a.bytes + CLEARED - 1) / CLEARED, CLEARED / 2) {
    const int64_t rest = a.bytes - i * CLEARED;
    memset((uint8_t *)a.out + i * CLEARED, 0, (size_t)(rest < CLEARED ? rest : CLEARED));
  }
}

void gather_rows(const void *given, Share *share) {
  ARGUMENTS(gather_rows);
  EACH(i, a.chips * a.count, a.width) {
    const int64_t row = i / a.count / a.cols, col = i / a.count % a.cols;
    const int64_t id = a.ids[row * a.ids_r + col * a.ids_c + i % a.count];
    const uint16_t *table = a.table + row * a.table_r + col * a.table_c;
    if (id < 0 || id >= a.rows)
      refuse(share);
    else
      memcpy(a.out + i * a.width, table + id * a.apart, (size_t)a.width * 2);
  }
}

void check_pages(const void *given, Share *share) {
  ARGUMENTS(check_pages);
  EACH(i, a.rows * a.cols * a.users, a.pages) {
    const int64_t row = i / a.users / a.cols, col = i / a.users % a.cols, user = i % a.users;
    const int64_t at = a.positions[row * a.at_r + col * a.at_c + user];
    const int32_t *page = a.table + row * a.table_r + col * a.table_c + user * a.pages;
    if (at >= a.pages * a.size) refuse(share);
    for (int64_t p = 0; p < a.pages && p * a.size <= at; p++)
      if (page[p] >= a.blocks) refuse(share);
  }
}

void find_pages(const void *given, Share *share) {
  ARGUMENTS(find_pages);
  EACH(i, a.chips * a.some, a.count) {
    const int64_t chip = i / a.some, row = chip / a.cols, col = chip % a.cols;
    const int64_t user = a.users[row * a.users_r + col * a.users_c + i % a.some];
    if (user < 0 || user >= a.all) {
      refuse(share);
      continue;
    }
    const int32_t *own = a.table + row * a.table_r + col * a.table_c + user * a.width;
    for (int64_t p = 0; p < a.count; p++) {
      if (own[p] >= a.blocks) refuse(share);
      a.pages[i * a.count + p] = own[p] < 0 ? -1 : own[p] + chip * a.blocks;
    }
  }
}

#define FAR 24 /* rows that memory is asked for before they are needed */

/* Where a head's row of a user's position begins in a cache; -1: nowhere. */
static inline int64_t row_of(const struct put_positions *a, int64_t i) {
  const uint32_t heads = (uint32_t)a->heads, users = (uint32_t)a->users, cols = (uint32_t)a->cols;
  const uint32_t all = (uint32_t)i / heads, head = (uint32_t)i % heads; /* divided in a few cycles */
  const uint32_t user = all % users, chip = all / users, row = chip / cols, col = chip % cols;
  const int64_t at = a->positions[row * a->at_r + col * a->at_c + user];
  if (at < 0 || (a->chain && a->chain[chip] < 0)) return -1;
  const uint32_t size = (uint32_t)a->size, page = (uint32_t)at / size, place = (uint32_t)at % size;
  int64_t block = user;
  if (a->table) block = a->table[row * a->table_r + col * a->table_c + user * a->pages + page];
  if (block < 0) return -1;
  return (((chip * a->blocks + block) * a->heads + head) * a->size + place) * a->width;
}

void put_positions(const void *given, Share *share) {
  ARGUMENTS(put_positions);
  const int64_t count = a.rows * a.cols * a.users * a.heads;
  EACH(i, count, a.width) {
    const int64_t place = row_of(&a, i);
    const int64_t later = i + FAR < count ? row_of(&a, i + FAR) : -1;
    if (later >= 0) fetch(a.cache + later, a.width);
    if (place < 0) continue;
    const uint32_t all = (uint32_t)i / (uint32_t)a.heads, chip = all / (uint32_t)a.users;
    const uint16_t *from = a.x + chip / (uint32_t)a.cols * a.x_r + chip % (uint32_t)a.cols * a.x_c +
                           all % (uint32_t)a.users * a.x_user + i % a.heads * a.width;
    if (!a.mantissa_bits)
      memcpy(a.cache + place, from, (size_t)a.width * sizeof(uint16_t));
    else
      for (int64_t j = 0; j < a.width; j += BLOCK) {
        float block[BLOCK];
        for (int n = 0; n < BLOCK; n++) block[n] = widened(from[j + n]);
        store_as(block, 1, a.cache + place + j, a.mantissa_bits);
      }
  }
}

void put_pages(const void *given, Share *share) {
  ARGUMENTS(put_pages);
  EACH(page, a.chips * a.users * a.count, a.heads * a.bytes / 2) {
    const int64_t chip = page / (a.users * a.count), user = page / a.count % a.users;
    const uint8_t *from = a.x + (a.sources[chip] * a.users + user) * a.heads * a.count * a.bytes;
    if (a.pages[page] >= a.total) refuse(share);
    if (a.pages[page] < 0 || a.pages[page] >= a.total) continue;
    for (int64_t h = 0; h < a.heads; h++)
      memcpy(a.table + (a.pages[page] * a.heads + h) * a.bytes,
             from + (h * a.count + page % a.count) * a.bytes, (size_t)a.bytes);
  }
}

void all_equal(const void *given, Share *share) {
  ARGUMENTS(all_equal);
  EACH(p, a.count, a.bytes / 2) {
    const uint8_t *one = a.rows + a.pairs[2 * p] * a.bytes;
    if (a.pairs[2 * p + 1] < 0) {
      uint16_t bits = 0;
      for (int64_t i = 0; i < a.bytes; i += 2) {
        uint16_t own;
        memcpy(&own, one + i, sizeof own);
        bits |= own;
      }
      if (bits & 0x7FFF) refuse(share); /* of zeros the sign may be there */
    } else if (memcmp(one, a.rows + a.pairs[2 * p + 1] * a.bytes, (size_t)a.bytes))
      refuse(share);
  }
}
