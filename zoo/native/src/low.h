// Products in bfloat16 and int8, float32 coming in and going out. Where the instruction set multiplies them, a word holds
// two bfloat16s or four int8s; elsewhere it holds one of them as a float, and the product is the float32 one.
#pragma once

#include "gemm.h"

namespace zoo::ZOO_ISA {

constexpr int64_t kWords = 64;  // words of a row that are converted before they are transposed into a tile

// How the numbers of a row become small whole ones: number = scale * (quantised - zero).
struct Quantised {
    float scale, inverse, zero;
};

struct Extremes {
    float low, high;
    bool finite;
};

static Extremes extremes(const float* x, int64_t n) {
    constexpr int kChains = 4;
    V low[kChains] = {}, high[kChains] = {}, odd[kChains] = {};  // 0 counts as one of the numbers
    auto see = [&](V v, int j) {
        low[j] = min(low[j], v), high[j] = max(high[j], v);
        odd[j] += v - v;  // 0, or NaN for what is not finite
    };
    int64_t i = 0;
    for (; i + kChains * W <= n; i += kChains * W)
        for (int j = 0; j < kChains; ++j) see(load(x + i + j * W), j);
    for (; i + W <= n; i += W) see(load(x + i), 0);
    if (i < n) see(load_some(x + i, n - i), 0);
    for (int j = 1; j < kChains; ++j) low[0] = min(low[0], low[j]), high[0] = max(high[0], high[j]), odd[0] += odd[j];
    return {-maximum(-low[0]), maximum(high[0]), sum(odd[0]) == 0.0f};
}

constexpr float kTiny = 1e-30f;  // a range below this counts as zeros, so that its inverse is finite
constexpr Quantised kZeros{0, 0, 0};
#define ZOO_NAN __builtin_nanf("")

// To 0..255, with a whole number for 0 itself.
static Quantised of_range(const float* x, int64_t n) {
    Extremes e = extremes(x, n);
    float range = e.high - e.low;
    if (!e.finite || !(range < 3e38f)) return {ZOO_NAN, 0, 0};
    if (range < kTiny) return kZeros;
    float inverse = 255.0f / range, zero = -e.low * inverse;
    return {range / 255.0f, inverse, (float)(int32_t)(zero + 0.5f)};
}

// To -127..127.
static Quantised of_size(const float* x, int64_t n) {
    Extremes e = extremes(x, n);
    float size = -e.low > e.high ? -e.low : e.high;
    if (!e.finite) return {ZOO_NAN, 0, 0};
    return size < kTiny ? kZeros : Quantised{size / 127.0f, 127.0f / size, 0};
}

struct Bfloat16 {
    static constexpr int64_t kRun = 1;
    static constexpr bool kQuantised = false, kRough = true;
    typedef V Sums;
    typedef V Left;
    typedef Float::Column Column;
#if defined(__AVX512BF16__)
    static constexpr int64_t kPerWord = 2;
    ZOO_INLINE V left(const float* a) { return (V)_mm512_set1_ps(*a); }
    ZOO_INLINE V madd(V sums, V left, V right) { return (V)_mm512_dpbf16_ps((__m512)sums, (__m512bh)left, (__m512bh)right); }
    ZOO_INLINE V words(const float* x, int64_t n) {
        V low = n >= W ? load(x) : load_some(x, n > 0 ? n : 0);
        V high = n >= 2 * W ? load(x + W) : load_some(x + W, n > W ? n - W : 0);
        return (V)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
    }
    // Words of a number of each.
    ZOO_INLINE V pairs(V low, V high) {
        alignas(64) static constexpr uint16_t order[] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                         8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
        return (V)_mm512_permutexvar_epi16(_mm512_load_si512(order), (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low));
    }
#else
    static constexpr int64_t kPerWord = 1;
    ZOO_INLINE V left(const float* a) { return Float::left(a); }
    ZOO_INLINE V madd(V sums, V left, V right) { return Float::madd(sums, left, right); }
    ZOO_INLINE V words(const float* x, int64_t n) {
        typedef uint32_t U __attribute__((vector_size(4 * ZOO_W)));
        V v = n >= W ? load(x) : load_some(x, n > 0 ? n : 0);
        U bits = (U)v;
        bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;  // to the nearest, halves to even
        return v == v ? (V)bits : v;
    }
#endif
    ZOO_INLINE V words_of_left(const float* x, int64_t n, const Quantised&) { return words(x, n); }
    ZOO_INLINE V words_of_right(const float* x, int64_t n, const Quantised&) { return words(x, n); }
    template <class P>
    static void pack(const P& g, int64_t r, int64_t rows, float* out);
};

struct Int8 {
    static constexpr int64_t kRun = 1;
    static constexpr bool kQuantised = true, kRough = true;
#if defined(__AVX512VNNI__)
    static constexpr int64_t kPerWord = 4;
    typedef I Sums;
    typedef __m512i Left;
    ZOO_INLINE __m512i left(const float* a) {
        int32_t word;
        memcpy(&word, a, sizeof word);
        return _mm512_set1_epi32(word);
    }
    ZOO_INLINE I madd(I sums, __m512i left, V right) { return (I)_mm512_dpbusd_epi32((__m512i)sums, left, (__m512i)right); }
    // What the row's zero has added is taken off: zero times the column's sum.
    struct Column {
        V scale;
        I sum;
        Column(const Finish& f, int64_t col) : scale(load(f.column_scale + col)) { memcpy(&sum, f.column_sum + col, sizeof sum); }
        V value(const float* buffer, const Finish& f, int64_t row) const {
            I sums;
            memcpy(&sums, buffer, sizeof sums);
            return __builtin_convertvector(sums - sum * f.row_zero[row], V) * (scale * f.row_scale[row]);
        }
    };
    ZOO_INLINE __m512i rounded(const float* x, int64_t n, const Quantised& q) {
        V v = n >= W ? load(x) : load_some(x, n > 0 ? n : 0);
        return _mm512_cvtps_epi32((__m512)(v * q.inverse + q.zero));
    }
    // 64 numbers as bytes. Packing works within lanes of 128 bits, so words are put in order after it.
    template <bool SIGNED>
    ZOO_INLINE V bytes(const float* x, int64_t n, const Quantised& q) {
        __m512i a = _mm512_packs_epi32(rounded(x, n, q), rounded(x + W, n - W, q));
        __m512i b = _mm512_packs_epi32(rounded(x + 2 * W, n - 2 * W, q), rounded(x + 3 * W, n - 3 * W, q));
        const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        return (V)_mm512_permutexvar_epi32(order, SIGNED ? _mm512_packs_epi16(a, b) : _mm512_packus_epi16(a, b));
    }
    ZOO_INLINE V words_of_left(const float* x, int64_t n, const Quantised& q) { return bytes<false>(x, n, q); }
    ZOO_INLINE V words_of_right(const float* x, int64_t n, const Quantised& q) { return bytes<true>(x, n, q); }
    static void column_sums(const float* panel, int64_t k, int32_t* out) {
        for (int j = 0; j < NV; ++j) {
            I sums{};
            for (int64_t p = 0; p < k; ++p) sums = madd(sums, _mm512_set1_epi8(1), load(panel + p * NR + j * W));
            memcpy(out + j * W, &sums, sizeof sums);
        }
    }
#else
    static constexpr int64_t kPerWord = 1;
    typedef V Sums;
    typedef V Left;
    ZOO_INLINE V left(const float* a) { return Float::left(a); }
    ZOO_INLINE V madd(V sums, V left, V right) { return Float::madd(sums, left, right); }
    struct Column {
        V scale;
        Column(const Finish& f, int64_t col) : scale(load(f.column_scale + col)) {}
        V value(const float* sums, const Finish& f, int64_t row) const { return load(sums) * (scale * f.row_scale[row]); }
    };
    ZOO_INLINE V words_of_left(const float* x, int64_t n, const Quantised& q) {
        V v = n >= W ? load(x) : load_some(x, n > 0 ? n : 0);
        return min(splat(255.0f), max(V{}, nearest(v * q.inverse + q.zero))) - q.zero;
    }
    ZOO_INLINE V words_of_right(const float* x, int64_t n, const Quantised& q) {
        return nearest((n >= W ? load(x) : load_some(x, n > 0 ? n : 0)) * q.inverse);
    }
    static void column_sums(const float*, int64_t, int32_t* out) { memset(out, 0, sizeof(int32_t) * NR); }
#endif
    template <class P>
    static void pack(const P& g, int64_t r, int64_t rows, float* out);
};

template <class K>
ZOO_INLINE int64_t words_of(int64_t k) {
    return ceil_div(k, K::kPerWord);
}

// [words][ld] of up to NR rows of floats.
template <class K>
static void words_of_rows(const float* x, int64_t stride, int64_t rows, int64_t numbers, float* out, int64_t ld) {
    alignas(64) float words[NR * kWords];
    for (int64_t from = 0; from < words_of<K>(numbers); from += kWords) {
        const int64_t here = least(kWords, words_of<K>(numbers) - from), first = from * K::kPerWord;
        for (int64_t i = 0; i < rows; ++i)
            for (int64_t w = 0; w < here; w += W) {
                const int64_t at = first + w * K::kPerWord;
                store(words + i * kWords + w, K::words(x + i * stride + at, numbers - at));
            }
        transpose(words, kWords, 1, rows, here, out + from * ld, ld);
    }
}

// One tile of the left-hand side, [words][rows].
template <class K>
static void pack_low_tile(const Product& g, int64_t r, int64_t rows, float* out) {
    alignas(64) float words[MR * kWords];
    Quantised q[MR];
    const float* x[MR];
    for (int64_t i = 0; i < rows; ++i) {
        const int64_t row = g.row0 + r + i;
        x[i] = g.a + row * g.lda;
        q[i] = kZeros;
        if constexpr (K::kQuantised) {
            q[i] = of_range(x[i], g.numbers);
            g.row_scale[row] = q[i].scale;
            g.row_zero[row] = (int32_t)q[i].zero;
        }
    }
    for (int64_t from = 0; from < g.k; from += kWords) {
        const int64_t here = least(kWords, g.k - from), first = from * K::kPerWord;
        for (int64_t i = 0; i < rows; ++i)
            for (int64_t w = 0; w < here; w += W) {
                const int64_t at = first + w * K::kPerWord;
                store(words + i * kWords + w, K::words_of_left(x[i] + at, g.numbers - at, q[i]));
            }
        transpose(words, kWords, 1, rows, here, out + from * rows, rows);
    }
}

template <class P>
void Bfloat16::pack(const P& g, int64_t r, int64_t rows, float* out) {
    pack_low_tile<Bfloat16>(g, r, rows, out);
}

template <class P>
void Int8::pack(const P& g, int64_t r, int64_t rows, float* out) {
    pack_low_tile<Int8>(g, r, rows, out);
}

// Behind the panels, for each column: its scale and its sum.
template <class K>
static int linear_low(const zoo_linear_args* x) {
    const int64_t n = x->b->n, padded = ceil_div(n, NR) * NR;
    if (x->m <= 0 || n <= 0) return ZOO_OK;
    Product g{};
    g.a = x->a, g.lda = x->lda, g.step = 1, g.m = x->m, g.n = n, g.k = words_of<K>(x->k), g.numbers = x->k, g.b = x->b->data;
    g.finish = {.column_bias = x->bias, .residual = x->residual, .ldr = x->ldr, .c = x->c, .ldc = x->ldc, .activation = x->activation};
    if constexpr (K::kQuantised) {
        g.finish.column_scale = x->b->data + padded * g.k;
        g.finish.column_sum = (const int32_t*)(g.finish.column_scale + padded);
        g.row_scale = scratch(kRowScales, (size_t)(2 * x->m));
        if (!g.row_scale) return ZOO_OUT_OF_MEMORY;
        g.row_zero = (int32_t*)(g.row_scale + x->m);
        g.finish.row_scale = g.row_scale, g.finish.row_zero = g.row_zero;
    }
    return multiply<K>(g);
}

struct LowPacking {
    Packing packing;
    int64_t words;
    float* scale;
    int32_t* sum;
    bool failed;
};

template <class K>
static void pack_low_panel(void* context, int64_t panel) {
    LowPacking& job = *(LowPacking*)context;
    const Packing& p = job.packing;
    const int64_t col0 = panel * NR, cols = least(NR, p.n - col0);
    float* out = p.to + col0 * job.words;
    alignas(64) float words[NR * kWords];
    Quantised q[NR];
    const float* x[NR];
    // columns that are not contiguous are copied
    float* copies = p.stride_k == 1 ? nullptr : scratch(kPackedRight, (size_t)(NR * p.k + 1));
    if (p.stride_k != 1 && !copies) {
        __atomic_store_n(&job.failed, true, __ATOMIC_RELAXED);
        return;
    }
    for (int64_t i = 0; i < NR; ++i) {
        q[i] = kZeros;
        if (i < cols) {
            x[i] = p.from + (col0 + i) * p.stride_n;
            if (copies) {
                for (int64_t k = 0; k < p.k; ++k) copies[i * p.k + k] = x[i][k * p.stride_k];
                x[i] = copies + i * p.k;
            }
            if constexpr (K::kQuantised) q[i] = of_size(x[i], p.k);
        }
        if constexpr (K::kQuantised) job.scale[col0 + i] = q[i].scale;
    }
    for (int64_t from = 0; from < job.words; from += kWords) {
        const int64_t here = least(kWords, job.words - from), first = from * K::kPerWord;
        memset(words, 0, sizeof words);
        for (int64_t i = 0; i < cols; ++i)
            for (int64_t w = 0; w < here; w += W) {
                const int64_t at = first + w * K::kPerWord;
                store(words + i * kWords + w, K::words_of_right(x[i] + at, p.k - at, q[i]));
            }
        transpose(words, kWords, 1, NR, here, out + from * NR, NR);
    }
    if constexpr (K::kQuantised) K::column_sums(out, job.words, job.sum + col0);
}

template <class K>
static zoo_packed* pack_low(const float* b, int64_t k, int64_t n, int64_t stride_k, int64_t stride_n) {
    const int64_t padded = ceil_div(n, NR) * NR, words = words_of<K>(k);
    zoo_packed* packed = new_packed(1, 0, n, k, padded * words + (K::kQuantised ? 2 * padded : 0), linear_low<K>);
    if (!packed) return nullptr;
    float* scale = packed->data + padded * words;
    LowPacking job{{b, k, n, stride_k, stride_n, packed->data}, words, scale, (int32_t*)(scale + padded), false};
    parallel(padded / NR, pack_low_panel<K>, &job);
    if (!job.failed) return packed;
    release(packed->data);
    release(packed);
    return nullptr;
}

static zoo_packed* pack_bfloat16(const float* b, int64_t k, int64_t n, int64_t stride_k, int64_t stride_n) {
    return pack_low<Bfloat16>(b, k, n, stride_k, stride_n);
}

// Sums of more numbers than these might not fit 32 bits: such a product is bfloat16's.
constexpr int64_t kMostInt8 = 65536;

static zoo_packed* pack_int8(const float* b, int64_t k, int64_t n, int64_t stride_k, int64_t stride_n) {
    return k > kMostInt8 ? pack_bfloat16(b, k, n, stride_k, stride_n) : pack_low<Int8>(b, k, n, stride_k, stride_n);
}

}  // namespace zoo::ZOO_ISA
