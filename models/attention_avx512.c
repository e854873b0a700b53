/* softmax(q k^T scale) v in fp32 for heads of 64 channels, with AVX-512; models/attention.py calls it.

A head's keys and values are brought into the order in which they are read; then BLOCK queries at a time meet all keys, so
that their weights stay in the second cache. Both products keep 16 sums in registers, which is what hides the latency of
two multiply-adds a cycle, and run at the speed of a large matrix product; the softmax between them takes a tenth.

Where queries, keys and values are one (V-V attention), the scores are symmetric, and so are the weights if all rows are
shifted by the same number: each pair is then computed once and serves two rows.

Built without OpenMP's library: the threads are those of torch, whose copy is in the process already. */

#include <immintrin.h>
#include <math.h>
#include <omp.h>

enum {
  LANES = 16,
  CHANNELS = 64,
  VECTORS = CHANNELS / LANES,
  ROWS = 8,           /* queries of a tile of scores */
  PANEL = 2 * LANES,  /* keys of a tile */
  MIXED = 4,          /* rows that are mixed from values at once */
  BLOCK = 64,         /* queries that are worked at between two passes over the keys */
  STRETCH = 128,      /* values whose weighted sum is taken at once */
  AHEAD = 8,          /* rows that are asked of memory ahead: they lie pages apart */
};
static const float SPREAD = 64; /* exp(-64) is far from the smallest number */

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

typedef struct {
  const float *start;
  long stride; /* in floats, from one row of CHANNELS to the next */
} Rows;

typedef struct {
  long n, width;  /* keys; floats in a row of weights */
  float *keys;    /* panels of (CHANNELS, PANEL) */
  float *values;  /* (n, CHANNELS) */
  float *mixed;   /* (n, CHANNELS): sums of weighted values */
  float *weights; /* (BLOCK, width): scores, then their exponentials */
  float *queries; /* (BLOCK, CHANNELS), scaled */
  float *sums;    /* (n): sums of weights */
} Head;

static long width_of(long n) {
  return (n + BLOCK - 1) / BLOCK * BLOCK + LANES; /* the lanes more keep rows out of each other's cache lines */
}

/* Floats that a thread needs for a head of n keys. */
long scratch_floats(long n) { return width_of(n) * (3 * CHANNELS + BLOCK + 1) + BLOCK * CHANNELS; }

static Head make_head(long n, float *scratch) {
  long width = width_of(n);
  Head head = {n, width, scratch};
  head.values = head.keys + width * CHANNELS;
  head.mixed = head.values + width * CHANNELS;
  head.weights = head.mixed + width * CHANNELS;
  head.queries = head.weights + BLOCK * width;
  head.sums = head.queries + BLOCK * CHANNELS;
  return head;
}

static long least(long a, long b) { return a < b ? a : b; }

static void fill(float *x, long n, float value) {
  for (long i = 0; i < n; i++) x[i] = value;
}

/* 2^n times the series of 2^f, n + f = x / ln 2, for x <= 0; 0 at minus infinity. Relative error some 2e-7 + 1.4e-8 |x|: the
   second part, of ln 2 in fp32, is much the same for all scores that count in a row, and goes when the row is divided. */
INLINE __m512 exponential(__m512 x) {
  static const float series[] = {1.5403530e-4f, 1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1};
  __m512 log2_e = _mm512_set1_ps(1.44269504f);
  __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, log2_e), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 f = _mm512_fmsub_ps(x, log2_e, n), y = _mm512_set1_ps(series[0]);
  UNROLL for (int i = 1; i < 7; i++) y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(series[i]));
  return _mm512_scalef_ps(y, n);
}

static void pack_keys(Head head, Rows k, Rows v) {
  for (long i = 0; i < head.n; i++) {
    const float *key = k.start + i * k.stride, *value = v.start + i * v.stride;
    float *column = head.keys + i / PANEL * PANEL * CHANNELS + i % PANEL;
    for (long c = 0; c < CHANNELS; c += LANES) {
      _mm_prefetch((const char *)(key + AHEAD * k.stride + c), _MM_HINT_T0);
      _mm_prefetch((const char *)(value + AHEAD * v.stride + c), _MM_HINT_T0);
    }
    for (long c = 0; c < CHANNELS; c++) column[c * PANEL] = key[c];
    for (long c = 0; c < CHANNELS; c++) head.values[i * CHANNELS + c] = value[c];
  }
}

static void pack_queries(Head head, Rows q, long first, long rows, float scale) {
  for (long r = 0; r < rows; r++)
    for (long c = 0; c < CHANNELS; c++)
      head.queries[r * CHANNELS + c] = q.start[(first + r) * q.stride + c] * scale;
  fill(head.queries + rows * CHANNELS, (BLOCK - rows) * CHANNELS, 0);
}

/* Scores of ROWS queries and the PANEL keys from `key` on, minus infinity where there is no key; `highest` of each row. */
INLINE void score_tile(Head head, long row, long key, __m512 *highest) {
  const float *queries = head.queries + row * CHANNELS, *keys = head.keys + key * CHANNELS;
  __m512 sums[ROWS][2];
  UNROLL for (int r = 0; r < ROWS; r++) sums[r][0] = sums[r][1] = _mm512_setzero_ps();
  for (int c = 0; c < CHANNELS; c++) {
    __m512 k0 = _mm512_load_ps(keys + c * PANEL), k1 = _mm512_load_ps(keys + c * PANEL + LANES);
    UNROLL for (int r = 0; r < ROWS; r++) {
      __m512 q = _mm512_set1_ps(queries[r * CHANNELS + c]);
      sums[r][0] = _mm512_fmadd_ps(q, k0, sums[r][0]);
      sums[r][1] = _mm512_fmadd_ps(q, k1, sums[r][1]);
    }
  }
  __mmask32 there = head.n - key < PANEL ? (1u << (head.n - key)) - 1 : ~0u;
  __m512 none = _mm512_set1_ps(-INFINITY);
  UNROLL for (int r = 0; r < ROWS; r++) {
    float *scores = head.weights + (row + r) * head.width + key;
    __m512 s0 = _mm512_mask_mov_ps(none, there, sums[r][0]);
    __m512 s1 = _mm512_mask_mov_ps(none, there >> LANES, sums[r][1]);
    highest[row + r] = _mm512_max_ps(highest[row + r], _mm512_max_ps(s0, s1));
    _mm512_store_ps(scores, s0);
    _mm512_store_ps(scores + LANES, s1);
  }
}

static void score_block(Head head, long rows, long first_key, __m512 *highest) {
  for (long r = 0; r < BLOCK; r++) highest[r] = _mm512_set1_ps(-INFINITY);
  for (long key = first_key; key < head.n; key += PANEL)
    for (long row = 0; row < rows; row += ROWS) score_tile(head, row, key, highest);
}

/* Row r of the scores from first_key on becomes exp(score - shift), whose sum is returned. From `other` on the weights are
   those of the keys' own rows as well and are added to their sums. */
static float exponentiate(Head head, long row, long first_key, long other, __m512 shift) {
  __m512 sum = _mm512_setzero_ps();
  for (long key = first_key; key < head.n; key += LANES) {
    float *weights = head.weights + row * head.width + key;
    __m512 w = exponential(_mm512_sub_ps(_mm512_load_ps(weights), shift));
    sum = _mm512_add_ps(sum, w);
    _mm512_store_ps(weights, w);
    if (key >= other) _mm512_store_ps(head.sums + key, _mm512_add_ps(_mm512_load_ps(head.sums + key), w));
  }
  return _mm512_reduce_add_ps(sum);
}

/* MIXED rows of `mixed` from `row` on: weights times n values are added. Weight of a row and a value: steps in floats. */
INLINE void mix(Head head, long row, const float *weights, long row_step, long value_step, long first, long n) {
  float *mixed = head.mixed + row * CHANNELS;
  const float *values = head.values + first * CHANNELS;
  __m512 sums[MIXED][VECTORS];
  UNROLL for (int r = 0; r < MIXED; r++)
    UNROLL for (int j = 0; j < VECTORS; j++) sums[r][j] = _mm512_setzero_ps();
  for (long i = 0; i < n; i++) {
    __m512 v[VECTORS];
    UNROLL for (int j = 0; j < VECTORS; j++) v[j] = _mm512_load_ps(values + i * CHANNELS + j * LANES);
    UNROLL for (int r = 0; r < MIXED; r++) {
      __m512 w = _mm512_set1_ps(weights[r * row_step + i * value_step]);
      UNROLL for (int j = 0; j < VECTORS; j++) sums[r][j] = _mm512_fmadd_ps(w, v[j], sums[r][j]);
    }
  }
  UNROLL for (int r = 0; r < MIXED; r++)
    UNROLL for (int j = 0; j < VECTORS; j++) {
      float *sum = mixed + r * CHANNELS + j * LANES;
      _mm512_store_ps(sum, _mm512_add_ps(_mm512_load_ps(sum), sums[r][j]));
    }
}

/* The block's rows, which are those of `mixed` from `row` on, with the values from `first` on: a stretch at a time, so that
   its values stay in the first cache, and so that no sum is of more terms than keeps its rounding small. */
static void mix_block(Head head, long row, long rows, long first) {
  for (long from = first; from < head.n; from += STRETCH)
    for (long r = 0; r < rows; r += MIXED)
      mix(head, row + r, head.weights + r * head.width + from, head.width, 1, from, least(STRETCH, head.n - from));
}

static void write_rows(Head head, long rows, float *out, long stride) {
  for (long r = 0; r < rows; r++)
    for (long c = 0; c < CHANNELS; c++) out[r * stride + c] = head.mixed[r * CHANNELS + c] * (1 / head.sums[r]);
}

static void attend(Head head, Rows q, long m, float scale, float *out, long stride) {
  for (long first = 0; first < m; first += BLOCK) {
    long rows = least(BLOCK, m - first);
    __m512 highest[BLOCK];
    pack_queries(head, q, first, rows, scale);
    score_block(head, rows, 0, highest);
    for (long r = 0; r < rows; r++)
      head.sums[r] = exponentiate(head, r, 0, head.n, _mm512_set1_ps(_mm512_reduce_max_ps(highest[r])));
    fill(head.mixed, BLOCK * CHANNELS, 0);
    mix_block(head, 0, rows, 0);
    write_rows(head, rows, out + first * stride, stride);
  }
}

/* Of values with themselves; no score is above `shift`. Each block meets the keys from its own first on. */
static void attend_itself(Head head, Rows v, float scale, float shift, float *out, long stride) {
  fill(head.mixed, head.width * CHANNELS, 0);
  fill(head.sums, head.width, 0);
  for (long first = 0; first < head.n; first += BLOCK) {
    long rows = least(BLOCK, head.n - first), other = first + BLOCK;
    __m512 highest[BLOCK];
    pack_queries(head, v, first, rows, scale);
    score_block(head, rows, first, highest);
    for (long r = 0; r < rows; r++)
      head.sums[first + r] += exponentiate(head, r, first, other, _mm512_set1_ps(shift));
    mix_block(head, first, rows, first);
    for (long row = other; row < head.n; row += MIXED)
      mix(head, row, head.weights + row, 1, head.width, first, rows);
  }
  write_rows(head, head.n, out, stride);
}

/* Lowest and highest score of a value with itself; the highest is the highest of all (Cauchy and Schwarz). */
static void own_scores(Head head, float scale, float *lowest, float *highest) {
  *lowest = INFINITY, *highest = -INFINITY;
  for (long i = 0; i < head.n; i++) {
    float square = 0;
    for (long c = 0; c < CHANNELS; c++) square += head.values[i * CHANNELS + c] * head.values[i * CHANNELS + c];
    *lowest = fminf(*lowest, square * scale), *highest = fmaxf(*highest, square * scale);
  }
}

/* q and out: (batch, heads, m, CHANNELS), k and v: (batch, heads, n, CHANNELS); strides of the first three dimensions in
   floats, the channels lie side by side. scratch: threads * scratch_floats(n), aligned to 64 bytes. itself: q, k and v are
   the same tensor. */
void attention(const float *q, const float *k, const float *v, float *out, const long *qs, const long *ks, const long *vs,
               const long *os, long batch, long heads, long m, long n, float scale, int itself, float *scratch, int threads) {
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (long item = 0; item < batch * heads; item++) {
    long b = item / heads, h = item % heads;
    Rows qr = {q + b * qs[0] + h * qs[1], qs[2]}, kr = {k + b * ks[0] + h * ks[1], ks[2]};
    Rows vr = {v + b * vs[0] + h * vs[1], vs[2]};
    float *rows = out + b * os[0] + h * os[1], lowest = 0, highest = SPREAD;
    Head head = make_head(n, scratch + omp_get_thread_num() * scratch_floats(n));
    pack_keys(head, kr, vr);
    if (itself) own_scores(head, scale, &lowest, &highest);
    if (highest - lowest < SPREAD) /* else a row that is far below would vanish; false of NaN, too */
      attend_itself(head, vr, scale, highest, rows, os[2]);
    else
      attend(head, qr, m, scale, rows, os[2]);
  }
}
