/* What one core can do at most in float32: multiply-adds of independent AVX-512 vectors. bench_native.py compiles it. */
#include <immintrin.h>
#include <stdint.h>

enum { CHAINS = 24 };

/* Runs for `rounds` and returns how many floating-point operations that were. */
double peak(int64_t rounds) {
    __m512 sums[CHAINS], factor = _mm512_set1_ps(0.999f), term = _mm512_set1_ps(0.001f);
    for (int i = 0; i < CHAINS; ++i) sums[i] = _mm512_set1_ps((float)i);
    for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 24
        for (int i = 0; i < CHAINS; ++i) sums[i] = _mm512_fmadd_ps(sums[i], factor, term);
    }
    float all = 0;
    for (int i = 0; i < CHAINS; ++i) all += _mm512_reduce_add_ps(sums[i]);
    return all == 12345.0f ? 0 : (double)rounds * CHAINS * 32;
}
