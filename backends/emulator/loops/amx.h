/* Products by the tile registers of some processors: 16 rows by 16 columns, 16 pairs at once, many
   times as fast as vectors. They sum even and odd places apart, so last bits may differ. */

#ifndef AMX_H
#define AMX_H
#include "vectors.h"

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__linux__) && LANES == 16
#include <sys/syscall.h>
#include <unistd.h>

#define HAS_TILES 1
#define EDGE 16 /* rows, columns, and pairs of a register */
#define REQUEST_PERMISSION 0x1023 /* of Linux's arch_prctl, for the state with number 18 */
#define TILE_DATA 18

static int may_use_tiles;

static __attribute__((constructor)) void ask_for_tiles(void) {
  may_use_tiles = syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}

static inline void open_tiles(void) {
  struct {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
  } shape = {.palette = 1};
  for (int i = 0; i < 8; i++) {
    shape.bytes[i] = 4 * EDGE;
    shape.rows[i] = EDGE;
  }
  _tile_loadconfig(&shape);
}

static inline void close_tiles(void) { _tile_release(); }

/* Sums [EDGE, TILE] in registers 0 and 1. */
static inline void clear_sums(void) {
  _tile_zero(0);
  _tile_zero(1);
}

/* More to the sums: EDGE rows of x, which lie `apart`, by pairs [*, TILE]. */
static inline void add_tiles(const uint16_t *x, int64_t apart, const uint32_t *weights,
                             int64_t pairs) {
  for (int64_t k = 0; k < pairs; k += EDGE) {
    _tile_loadd(4, x + 2 * k, (size_t)apart * 2);
    _tile_loadd(6, weights + k * TILE, TILE * 4);
    _tile_loadd(7, weights + k * TILE + EDGE, TILE * 4);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
  }
}

static inline void store_sums(float *sums, int64_t apart) {
  _tile_stored(0, sums, (size_t)apart * 4);
  _tile_stored(1, sums + EDGE, (size_t)apart * 4);
}

/* Twice as many rows at once: sums [2 EDGE, TILE]. */
static inline void multiply_two(const uint16_t *x, int64_t apart, const uint32_t *weights,
                                int64_t pairs, float *sums) {
  clear_sums();
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t k = 0; k < pairs; k += EDGE) {
    _tile_loadd(4, x + 2 * k, (size_t)apart * 2);
    _tile_loadd(5, x + EDGE * apart + 2 * k, (size_t)apart * 2);
    _tile_loadd(6, weights + k * TILE, TILE * 4);
    _tile_loadd(7, weights + k * TILE + EDGE, TILE * 4);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  store_sums(sums, TILE);
  _tile_stored(2, sums + EDGE * TILE, TILE * 4);
  _tile_stored(3, sums + EDGE * TILE + EDGE, TILE * 4);
}
#else
#define HAS_TILES 0
#endif

#endif
