// Vectors of floats over the compiler's own vector types: W numbers, the register width of the unit's instruction set.
// Nothing here may call inline functions of the standard library: their copies could be shared between units.
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define ZOO_W 16
#elif defined(__AVX2__)
#define ZOO_W 8
#else
#define ZOO_W 4
#endif

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define ZOO_INLINE static inline __attribute__((always_inline))

namespace zoo::ZOO_ISA {

constexpr int W = ZOO_W;
typedef float V __attribute__((vector_size(4 * ZOO_W)));
typedef int32_t I __attribute__((vector_size(4 * ZOO_W)));

ZOO_INLINE V load(const float* p) {
    V v;
    memcpy(&v, p, sizeof v);
    return v;
}
ZOO_INLINE void store(float* p, V v) { memcpy(p, &v, sizeof v); }
ZOO_INLINE V splat(float x) { return x - V{}; }  // x - 0 keeps -0 and NaN

// The first n numbers (the others are 0), n < W.
ZOO_INLINE V load_some(const float* p, int64_t n) {
#if defined(__AVX512F__)
    return (V)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
#else
    V v{};
    for (int64_t i = 0; i < n; ++i) v[i] = p[i];
    return v;
#endif
}
ZOO_INLINE void store_some(float* p, V v, int64_t n) {
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
#else
    for (int64_t i = 0; i < n; ++i) p[i] = v[i];
#endif
}

// As C's comparisons: NaN in the second stays, in the first it is lost.
ZOO_INLINE V max(V a, V b) {
#if defined(__AVX512F__)
    return (V)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (V)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return a > b ? a : b;
#endif
}
ZOO_INLINE V min(V a, V b) {
#if defined(__AVX512F__)
    return (V)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (V)_mm256_min_ps((__m256)a, (__m256)b);
#else
    return a < b ? a : b;
#endif
}

ZOO_INLINE V sqrt(V a) {
#if defined(__AVX512F__)
    return (V)_mm512_sqrt_ps((__m512)a);
#elif defined(__AVX2__)
    return (V)_mm256_sqrt_ps((__m256)a);
#else
    for (int i = 0; i < W; ++i) a[i] = __builtin_sqrtf(a[i]);
    return a;
#endif
}

// The halves of a vector joined, and so on until one number is left. Compilers go through memory for it.
typedef float V4 __attribute__((vector_size(16)));
typedef float V8 __attribute__((vector_size(32)));
template <class F>
ZOO_INLINE float folded(V v, F join) {
#if ZOO_W == 16
    V8 eight = join((V8)_mm512_castps512_ps256((__m512)v), (V8)_mm256_castpd_ps(_mm512_extractf64x4_pd((__m512d)v, 1)));
#elif ZOO_W == 8
    V8 eight = v;
#endif
#if ZOO_W >= 8
    V4 four = join((V4)_mm256_castps256_ps128((__m256)eight), (V4)_mm256_extractf128_ps((__m256)eight, 1));
#else
    V4 four = v;
#endif
    return join(join(four[0], four[2]), join(four[1], four[3]));
}
ZOO_INLINE float sum(V v) {
    return folded(v, [](auto a, auto b) { return a + b; });
}
ZOO_INLINE float maximum(V v) {
    return folded(v, [](auto a, auto b) { return (a > b) | (a != a) ? a : b; });
}

// The whole number nearest to each, which must be below 2^22.
ZOO_INLINE V nearest(V x) { return (x + 12582912.0f) - 12582912.0f; }

// x 2^n for whole n. Two factors, so that results may be subnormal.
ZOO_INLINE V scaled(V x, V n) {
#if defined(__AVX512F__)
    return (V)_mm512_scalef_ps((__m512)x, (__m512)n);  // of n that are not whole the floor counts
#else
    I whole = __builtin_convertvector(n, I), half = whole >> 1;
    return x * (V)((half + 127) << 23) * (V)((whole - half + 127) << 23);
#endif
}

// exp(x) / 2^n for n the whole number nearest to x / ln 2. r is x less n ln 2 (in two parts, so that it is exact); the
// polynomial is (exp(r) - 1 - r) / r², fitted at Chebyshev's points. Relative error below 1.2e-7.
ZOO_INLINE V exp_near(V x, V n) {
    V r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    V p = r * 1.99077052e-4f + 1.39337329e-3f;
    p = p * r + 8.33328583e-3f;
    p = p * r + 4.16664642e-2f;
    p = p * r + 1.66666668e-1f;
    p = p * r + 5.00000001e-1f;
    return p * (r * r) + r + 1.0f;
}

ZOO_INLINE V exp(V x) {
    x = min(splat(89.0f), max(splat(-104.0f), x));
    V n = nearest(x * 1.44269504f);
    return scaled(exp_near(x, n), n);
}

// 2^y for y that are 0 or less, or NaN: (2^r - 1) / r as a polynomial on [0, 1], fitted to the relative
// error; 1 at 0. Relative error below 6.5e-8 where the result is no subnormal.
ZOO_INLINE V exp2_below(V y) {
#if defined(__AVX512F__) && defined(__AVX512DQ__)
    V n = y, r = (V)_mm512_reduce_ps((__m512)y, 1);  // y - floor(y)
#else
    y = max(splat(-150.0f), y);
    V n = nearest(y - 0.5f), r = y - n;
#endif
    V p = r * 2.16129151e-4f + 1.24678464e-3f;
    p = p * r + 9.67545157e-3f;
    p = p * r + 5.54852806e-2f;
    p = p * r + 2.40229306e-1f;
    p = p * r + 6.93147044e-1f;
    p = p * r + 1.0f;
    return scaled(p, n);
}

ZOO_INLINE V absolute(V x) { return (V)((I)x & 0x7fffffff); }
ZOO_INLINE V with_sign_of(V x, V sign) { return (V)((I)x | ((I)sign & (int32_t)0x80000000)); }

// erf(x) / x - 1 as a polynomial in x² up to 0.94, 1 - exp(log(erfc)) beyond, both fitted at Chebyshev's points;
// at 4 it is 1 in float32.
ZOO_INLINE V erf(V x) {
    V t = min(splat(4.0f), absolute(x));
    V s = t * t;
    V p = s * 8.22398626e-5f - 8.10808256e-4f;
    p = p * s + 5.19799182e-3f;
    p = p * s - 2.68581859e-2f;
    p = p * s + 1.12836741e-1f;
    p = p * s - 3.76126324e-1f;
    p = p * s + 1.28379167e-1f;
    p = p * t + t;
    V q = t * -1.68868521e-5f + 3.77621627e-4f;
    q = q * t - 3.85411921e-3f;
    q = q * t + 2.41736836e-2f;
    q = q * t - 1.06647586e-1f;
    q = q * t - 6.34979581e-1f;
    q = q * t - 1.12863725f;
    q = q * t - 2.13758404e-5f;
    q = 1.0f - exp(q);
    return with_sign_of(t < 0.94f ? p : q, x);
}

// x Phi(x), as max(x, 0) - |x| Phi(-|x|): Phi(-sqrt(2) t) is exp of a polynomial in t, fitted at Chebyshev's points on
// [0, 4]; beyond, it is less than a float32 of the result can show. Its argument is between -19 and 0: no care for others.
ZOO_INLINE V gelu(V x) {
    V t = min(splat(4.0f), absolute(x) * 0.70710678f);
    V p = t * -7.67175538e-7f + 1.53305725e-5f;
    p = p * t - 1.32381954e-4f;
    p = p * t + 6.30562454e-4f;
    p = p * t - 1.59573399e-3f;
    p = p * t + 2.52094727e-5f;
    p = p * t + 1.92699257e-2f;
    p = p * t - 1.02828770e-1f;
    p = p * t - 6.36608939e-1f;
    p = p * t - 1.12837996f;
    V y = p * t;
    V n = nearest(y * 1.44269504f);
    V tail = absolute(x) * exp_near(y, n) * (V)((__builtin_convertvector(n, I) + 126) << 23);
    return (x < 0.0f ? splat(0.0f) : x) - (t < 4.0f ? tail : splat(0.0f));
}

// The same where less will do: powers of 2 with a relative error of 1e-5, gelu with an absolute one of 2e-6.
#if defined(__AVX512F__) && defined(__AVX512DQ__)
// 2^y times `factor`, the polynomial being 2^(y - floor(y)) over factor.
ZOO_INLINE V exp2_rough(V y, float factor) {
    V r = (V)_mm512_reduce_ps((__m512)y, 1);  // y - floor(y)
    V p = r * (1.35341884e-2f * factor) + 5.20115277e-2f * factor;
    p = p * r + 2.41442630e-1f * factor;
    p = p * r + 6.93003887e-1f * factor;
    p = p * r + 1.00000259f * factor;
    return scaled(p, y);
}
ZOO_INLINE V exp2_below_rough(V y) { return exp2_rough(y, 1.0f); }
// max(x, 0) - |x| Phi(-|x|), with the binary logarithm of erfc as a polynomial on [0, 4].
ZOO_INLINE V gelu_rough(V x) {
    V t = min(splat(4.0f), absolute(x) * 0.70710678f);
    V p = t * -2.76111673e-3f + 2.87948540e-2f;
    p = p * t - 1.47492927e-1f;
    p = p * t - 9.19191697e-1f;
    p = p * t - 1.62776058f;
    return (x < 0.0f ? splat(0.0f) : x) - t * exp2_rough(p * t, 0.70710678f);
}
#else
ZOO_INLINE V exp2_below_rough(V y) { return exp2_below(y); }
ZOO_INLINE V gelu_rough(V x) { return gelu(x); }
#endif

ZOO_INLINE V tanh(V x) {
    V t = absolute(x);
    V s = t * t;
    V p = s * -6.11318863e-3f + 2.10100792e-2f;
    p = p * s - 5.38540692e-2f;
    p = p * s + 1.33327945e-1f;
    p = p * s - 3.33333292e-1f;
    p = p * s * t + t;
    V q = 1.0f - 2.0f / (exp(t + t) + 1.0f);
    return with_sign_of(t < 0.625f ? p : q, x);
}

ZOO_INLINE V sigmoid(V x) { return 1.0f / (1.0f + exp(-x)); }

ZOO_INLINE V activate(V x, int op) {
    switch (op) {
        case ZOO_RELU: return x < 0.0f ? splat(0.0f) : x;
        case ZOO_GELU: return gelu(x);
        case ZOO_GELU_TANH: return x * sigmoid(x * (1.59576912f + 0.0713548163f * x * x));
        case ZOO_SILU: return x * sigmoid(x);
        case ZOO_TANH: return tanh(x);
        case ZOO_SIGMOID: return sigmoid(x);
        case ZOO_EXP: return exp(x);
        case ZOO_ERF: return erf(x);
        case ZOO_RELU6: return x < 0.0f ? splat(0.0f) : x > 6.0f ? splat(6.0f) : x;
        default: return x;
    }
}

}  // namespace zoo::ZOO_ISA
