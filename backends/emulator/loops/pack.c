/* Packing weights, once before they are used, and what is packed unpacked. */

#include "packed.h"

int64_t packing(void) { return PACKING; }

#define SOME 32 /* rows of depth taken at once: columns lie far apart */

/* One row of a block [BLOCK], in units of its last bit; 0 where it has more bits than those. */
static inline int pack_row(const float *row, int bits, int *mantissas, int *less) {
  uint32_t top = 0;
  for (int j = 0; j < BLOCK; j++) {
    const uint32_t exponent = as_bits(row[j]) & EXPONENT;
    top = exponent > top ? exponent : top;
  }
  *less = 0;
  if (top == 0) { /* nothing, or what is next to nothing */
    int is_zero = 1;
    for (int j = 0; j < BLOCK; j++) {
      is_zero &= row[j] == 0;
      mantissas[j] = 0;
    }
    return is_zero;
  }
  if (top < (uint32_t)SMALLEST << PLACE || top > (uint32_t)LARGEST << PLACE) return 0;
  const int below = bits - 1, most = (1 << bits) - 1;
  const float per_unit = as_float(((uint32_t)(254 + below) << PLACE) - top);
  int is_whole = 1;
  for (int j = 0; j < BLOCK; j++) {
    const float units = row[j] * per_unit;
    mantissas[j] = (int)units;
    is_whole &= (float)mantissas[j] == units && mantissas[j] >= -most && mantissas[j] <= most;
  }
  *less = (127 + below - (int)(top >> PLACE)) * 128; /* bfloat16's exponent begins at bit 7 */
  return is_whole && *less >= 0;
}

void pack_tiles(const void *given, Share *share) {
  ARGUMENTS(pack_tiles);
  const int bits = a.packed == 64 ? 7 : 3;
  EACH(t, a.count, TILE * a.depth)
  for (int64_t from = 0; from < 2 * a.pairs && !has_refused(share); from += SOME) {
    const int64_t to = from + SOME < 2 * a.pairs ? from + SOME : 2 * a.pairs;
    float rows[SOME][TILE];
    for (int j = 0; j < TILE; j++)
      for (int64_t k = from; k < to; k++)
        rows[k - from][j] = widened(a.tiles[(t * TILE + j) * a.depth + k] & (uint16_t)a.mask);
    for (int64_t k = from; k < to; k++) {
      const int64_t pair = t * a.pairs + k / 2;
      uint8_t *own = a.mantissas + pair * a.packed;
      for (int b = 0; b < TILE / BLOCK; b++) {
        int mantissas[BLOCK], less;
        if (!pack_row(rows[k - from] + b * BLOCK, bits, mantissas, &less)) refuse(share);
        const uint16_t half = (uint16_t)less;
        memcpy((uint8_t *)(a.exponents + pair * 2 + b) + 2 * (k % 2), &half, 2);
        for (int j = 0; j < BLOCK; j++) {
          if (bits == 7)
            own[byte_of(b * BLOCK + j, (int)(k % 2))] = as_byte(mantissas[j]);
          else if (b == 0) /* two blocks share bytes, the second in the upper half */
            own[nibbles_of(j, (int)(k % 2))] = as_nibble(mantissas[j]);
          else
            own[nibbles_of(j, (int)(k % 2))] |= (uint8_t)(as_nibble(mantissas[j]) << 4);
        }
      }
    }
  }
}

void unpack_tiles(const void *given, Share *share) {
  ARGUMENTS(unpack_tiles);
  EACH(t, a.count, TILE * a.depth) {
    uint32_t row[TILE];
    for (int64_t k = 0; k < a.depth / 2; k++) {
      const int64_t pair = a.spans[2 * t] + k;
      Pair own[VECTORS];
      if (k >= a.spans[2 * t + 1])
        memset(own, 0, sizeof own);
      else if (a.packed == 64)
        unpack_bytes(a.mantissas + pair * 64, a.exponents + pair * 2, own);
      else
        unpack_nibbles(a.mantissas + pair * 32, a.exponents + pair * 2, own);
      for (int v = 0; v < VECTORS; v++) {
        const words both = words_of(own[v]);
        memcpy(row + v * LANES, &both, sizeof both);
      }
      for (int j = 0; j < TILE; j++) memcpy(a.tiles + (t * TILE + j) * a.depth + 2 * k, row + j, 4);
    }
  }
}
