// Products. The left-hand side is packed as tiles of up to MR rows, [k][mr]; the right-hand side as panels of NR columns,
// [k][NR]. The micro-kernel keeps mr x NR sums in registers over a run of k and adds them to a small buffer; what comes
// after the sum (bias, activation, residual) is applied on the way from that buffer to the result.
// All of it is written over words of 32 bits: a float, or the two bfloat16s or four int8s that one instruction multiplies
// and sums (low.h). K says which, and k counts words.
#pragma once

#include "kernels.h"
#include "vec.h"

namespace zoo::ZOO_ISA {

// All registers but what holds a row of the right-hand side and one number of the left.
constexpr int NV = 2;
constexpr int NR = NV * W;
#if defined(__AVX512F__)
constexpr int MR = 14;
#elif defined(__AVX2__)
constexpr int MR = 6;
#else
constexpr int MR = 4;
#endif
constexpr int64_t KC = 256;  // numbers summed in one run: bounds the rounding error and what must stay in the cache

ZOO_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
ZOO_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// Rows split into equal tiles: 16 rows are 8 + 8, not 14 + 2.
ZOO_INLINE int64_t tile_rows(int64_t m) { return m <= 0 ? 1 : ceil_div(m, ceil_div(m, MR)); }

struct Finish {
    const float* column_bias;  // may be NULL
    const float* row_bias;     // may be NULL
    const float* residual;     // may be NULL
    int64_t ldr;
    float* c;
    int64_t ldc;
    int32_t activation;
    bool residual_first;  // added before the activation
    // of quantised numbers: the value of one, per row and column; what a row's 0 is, and the sums of the columns
    const float *row_scale, *column_scale;
    const int32_t *row_zero, *column_sum;
};

struct Float {
    typedef V Sums;
    typedef V Left;
    static constexpr int64_t kPerWord = 1;
    static constexpr int64_t kRun = 1;  // words of a row that lie side by side in a tile
    static constexpr bool kQuantised = false, kRough = false;  // rough: what comes after need not be better than the product
    ZOO_INLINE V left(const float* a) { return splat(*a); }
    ZOO_INLINE V madd(V sums, V left, V right) { return sums + left * right; }
    // What the sums of a column mean.
    struct Column {
        Column(const Finish&, int64_t) {}
        V value(const float* sums, const Finish&, int64_t) const { return load(sums); }
    };
    template <class P>
    static void pack(const P& g, int64_t r, int64_t rows, float* out);
};

// `ahead` is asked for meanwhile, a line a step: what is read next, when there are too few rows to hide that it is far.
template <class K, int M, int N = NV>
static void tile(const float* __restrict a, const float* __restrict b, int64_t k, float* __restrict c, bool first, const char* ahead) {
    typename K::Sums sums[M][N];
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i)
        for (int j = 0; j < N; ++j) sums[i][j] = typename K::Sums{};
    auto step = [&](const float* at) {
        __builtin_prefetch(ahead, 0, 2);
        V right[N];
        for (int j = 0; j < N; ++j) right[j] = load(b + j * W);
#pragma GCC unroll 16
        for (int i = 0; i < M; ++i) {
            typename K::Left left = K::left(at + i * K::kRun);
            for (int j = 0; j < N; ++j) sums[i][j] = K::madd(sums[i][j], left, right[j]);
        }
        b += NR, ahead += 64;
    };
    for (int64_t p = 0; p < k; p += K::kRun, a += M * K::kRun) {
        if constexpr (K::kRun == 1)
            step(a);
        else
            for (int64_t q = 0; q < least(K::kRun, k - p); ++q) step(a + q);
    }
    if (!first) {
#pragma GCC unroll 16
        for (int i = 0; i < M; ++i)
            for (int j = 0; j < N; ++j) {
                typename K::Sums before;
                memcpy(&before, c + (i * NV + j) * W, sizeof before);
                sums[i][j] += before;
            }
    }
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i)
        for (int j = 0; j < N; ++j) memcpy(c + (i * NV + j) * W, &sums[i][j], sizeof(V));
}

typedef void (*Tile)(const float*, const float*, int64_t, float*, bool, const char*);
// N: how many vectors of a panel's row count.
template <class K, int N = NV>
static constexpr Tile kTiles[] = {
    nullptr, tile<K, 1, N>, tile<K, 2, N>, tile<K, 3, N>, tile<K, 4, N>,
#if ZOO_W >= 8
    tile<K, 5, N>, tile<K, 6, N>,
#endif
#if ZOO_W >= 16
    tile<K, 7, N>, tile<K, 8, N>, tile<K, 9, N>, tile<K, 10, N>, tile<K, 11, N>, tile<K, 12, N>, tile<K, 13, N>, tile<K, 14, N>,
#endif
};

// c[mr][NR] (+)= a b over all of k, in runs of KC. a[k][mr], b[k][NR].
template <class K = Float>
ZOO_INLINE void product(const float* a, const float* b, int64_t mr, int64_t k, float* c, bool first, const char* ahead = nullptr) {
    if (k == 0 && first) memset(c, 0, sizeof(float) * mr * NR);
    for (int64_t from = 0; from < k; from += KC) {
        kTiles<K>[mr](a + from * mr, b + from * NR, least(KC, k - from), c, first && from == 0,
                      ahead ? ahead + from * 64 : (const char*)(b + from * NR));
    }
}

// Asks for the lines that `finish` writes and reads, to be there when the product is done.
ZOO_INLINE void fetch_ahead(int64_t rows, int64_t row0, int64_t col0, const Finish& f) {
    for (int64_t i = row0; i < row0 + rows; ++i)
        for (int64_t j = col0; j < col0 + NR; j += 16) {
            __builtin_prefetch(f.c + i * f.ldc + j, 1);
            if (f.residual) __builtin_prefetch(f.residual + i * f.ldr + j);
        }
}

// ACTIVATION known when compiled, or -1: the one of f.
template <class K, int ACTIVATION>
static void finish_as(const float* buffer, int64_t rows, int64_t cols, int64_t row0, int64_t col0, const Finish& f) {
    auto columns = [&](int64_t j, auto read, auto write) {
        const typename K::Column column(f, col0 + j);
        const V bias = f.column_bias ? read(f.column_bias + col0 + j) : V{};
        for (int64_t i = 0; i < rows; ++i) {
            const int64_t row = row0 + i;
            V x = column.value(buffer + i * NR + j, f, row) + bias;
            if (f.row_bias) x += splat(f.row_bias[row]);
            V r = f.residual ? read(f.residual + row * f.ldr + col0 + j) : V{};
            if (f.residual_first) x += r;
            if constexpr (K::kRough && ACTIVATION == ZOO_GELU)
                x = gelu_rough(x);
            else
                x = activate(x, ACTIVATION < 0 ? f.activation : ACTIVATION);
            if (f.residual && !f.residual_first) x += r;
            write(f.c + row * f.ldc + col0 + j, x);
        }
    };
    int64_t j = 0;
    for (; j + W <= cols; j += W) columns(j, [](const float* p) { return load(p); }, [](float* p, V x) { store(p, x); });
    const int64_t n = cols - j;
    if (n > 0) columns(j, [n](const float* p) { return load_some(p, n); }, [n](float* p, V x) { store_some(p, x, n); });
}

// From the buffer [mr][NR] to c[row0.., col0..], cut to rows x cols.
template <class K = Float>
static void finish(const float* buffer, int64_t rows, int64_t cols, int64_t row0, int64_t col0, const Finish& f) {
    if (f.activation == ZOO_NONE) return finish_as<K, ZOO_NONE>(buffer, rows, cols, row0, col0, f);
    if (f.activation == ZOO_GELU) return finish_as<K, ZOO_GELU>(buffer, rows, cols, row0, col0, f);
    finish_as<K, -1>(buffer, rows, cols, row0, col0, f);
}

// out[c][r] = in[r][c] for r below rows and c below cols; numbers of one row of `in` are `step` apart.
static void transpose(const float* in, int64_t stride, int64_t step, int64_t rows, int64_t cols, float* out, int64_t ldo) {
    int64_t c = 0;
#if defined(__AVX512F__)
    if (step == 1) {
        // 16 rows at a time as four transposes of 4 x 4 in each 128-bit lane, then of the lanes
        const int64_t whole = cols / 16 * 16;
        for (int64_t r = 0; r < rows; r += 16) {
            for (c = 0; c < whole; c += 16) {
                __m512 v[16], t[16];
                int64_t here = least(16, rows - r);
                for (int i = 0; i < here; ++i) __builtin_prefetch(in + (r + i) * stride + c + 128);
                for (int i = 0; i < 16; ++i)
                    v[i] = i < here ? _mm512_loadu_ps(in + (r + i) * stride + c) : _mm512_setzero_ps();
                for (int i = 0; i < 16; i += 4) {
                    __m512 ab = _mm512_unpacklo_ps(v[i], v[i + 1]), AB = _mm512_unpackhi_ps(v[i], v[i + 1]);
                    __m512 cd = _mm512_unpacklo_ps(v[i + 2], v[i + 3]), CD = _mm512_unpackhi_ps(v[i + 2], v[i + 3]);
                    t[i] = _mm512_shuffle_ps(ab, cd, 0x44), t[i + 1] = _mm512_shuffle_ps(ab, cd, 0xee);
                    t[i + 2] = _mm512_shuffle_ps(AB, CD, 0x44), t[i + 3] = _mm512_shuffle_ps(AB, CD, 0xee);
                }
                for (int i = 0; i < 4; ++i) {
                    __m512 p = _mm512_shuffle_f32x4(t[i], t[i + 4], 0x88), q = _mm512_shuffle_f32x4(t[i], t[i + 4], 0xdd);
                    __m512 s = _mm512_shuffle_f32x4(t[i + 8], t[i + 12], 0x88);
                    __m512 u = _mm512_shuffle_f32x4(t[i + 8], t[i + 12], 0xdd);
                    v[i] = _mm512_shuffle_f32x4(p, s, 0x88), v[i + 8] = _mm512_shuffle_f32x4(p, s, 0xdd);
                    v[i + 4] = _mm512_shuffle_f32x4(q, u, 0x88), v[i + 12] = _mm512_shuffle_f32x4(q, u, 0xdd);
                }
                for (int i = 0; i < 16; ++i) {
                    float* o = out + (c + i) * ldo + r;
                    if (here == 16)
                        _mm512_storeu_ps(o, v[i]);
                    else
                        _mm512_mask_storeu_ps(o, (__mmask16)((1u << here) - 1), v[i]);
                }
            }
        }
    }
#endif
    for (; c < cols; ++c)
        for (int64_t r = 0; r < rows; ++r) out[c * ldo + r] = in[r * stride + c * step];
}

// One tile of the left-hand side, [k][rows].
ZOO_INLINE void pack_tile(const float* a, int64_t lda, int64_t step, int64_t rows, int64_t k, float* out) {
    transpose(a, lda, step, rows, k, out, rows);
}

// One panel of the right-hand side, [k][NR], zeros beyond cols.
static void pack_panel(const float* b, int64_t stride_k, int64_t stride_n, int64_t cols, int64_t k, float* out) {
    if (stride_n == 1) {
        if (cols == NR) {
            for (int64_t p = 0; p < k; ++p, b += stride_k, out += NR)
                for (int j = 0; j < NV; ++j) store(out + j * W, load(b + j * W));
            return;
        }
        for (int64_t p = 0; p < k; ++p, b += stride_k, out += NR) {
            memcpy(out, b, sizeof(float) * cols);
            memset(out + cols, 0, sizeof(float) * (NR - cols));
        }
        return;
    }
    transpose(b, stride_n, stride_k, cols, k, out, NR);
    if (cols < NR)
        for (int64_t p = 0; p < k; ++p) memset(out + p * NR + cols, 0, sizeof(float) * (NR - cols));
}

constexpr int64_t kLines = NR < 16 ? 1 : NR / 16;  // of a panel, to a step of k

struct Packing {
    const float* from;
    int64_t k, n, stride_k, stride_n;
    float* to;
};

static void pack_one_panel(const Packing& p, int64_t panel, float* to) {
    int64_t col = panel * NR;
    pack_panel(p.from + col * p.stride_n, p.stride_k, p.stride_n, least(NR, p.n - col), p.k, to);
}

static void pack_in_place(void* context, int64_t panel) {
    const Packing& p = *(const Packing*)context;
    pack_one_panel(p, panel, p.to + panel * NR * p.k);
}

struct Product {
    const float* a;  // [m][k] with strides
    int64_t lda, step, m, n, k;
    const float* b;           // panels, or NULL
    const Packing* unpacked;  // what they are made of then
    float* packed;
    int64_t mr, row0, rows;  // the rows packed now
    int64_t tiles, groups;   // tiles of those, and into how many tasks a panel's are split
    Finish finish;
    int64_t numbers;  // of a row, where a word holds several
    float* row_scale;
    int32_t* row_zero;
    bool failed;
};

template <class P>
void Float::pack(const P& g, int64_t r, int64_t rows, float* out) {
    pack_tile(g.a + (g.row0 + r) * g.lda, g.lda, g.step, rows, g.k, out);
}

template <class K>
static void pack_rows(void* context, int64_t t) {
    const Product& g = *(const Product*)context;
    int64_t r = t * g.mr;
    K::pack(g, r, least(g.mr, g.rows - r), g.packed + r * g.k);
}

template <class K>
static void panel_by_tiles(void* context, int64_t task) {
    Product& g = *(Product*)context;
    int64_t panel = task / g.groups, group = task % g.groups, col0 = panel * NR;
    const float* b = g.b ? g.b + panel * NR * g.k : nullptr;
    if (!b) {
        float* own = scratch(kPackedRight, (size_t)(NR * g.k + 1));
        if (!own) {
            __atomic_store_n(&g.failed, true, __ATOMIC_RELAXED);
            return;
        }
        pack_one_panel(*g.unpacked, panel, own);
        b = own;
    }
    alignas(64) float buffer[MR * NR];
    for (int64_t t = g.tiles * group / g.groups; t < g.tiles * (group + 1) / g.groups; ++t) {
        int64_t r = t * g.mr, rows = least(g.mr, g.rows - r);
        fetch_ahead(rows, g.row0 + r, col0, g.finish);
        // the next panel in equal parts: its bytes are k words by NR
        const int64_t line = t % kLines;
        product<K>(g.packed + r * g.k, b, rows, g.k, buffer, true, t < kLines ? (const char*)(b + NR * g.k) + line * g.k * 64 : nullptr);
        finish<K>(buffer, rows, least(NR, g.n - col0), g.row0 + r, col0, g.finish);
    }
}

// The whole of a product on all threads.
template <class K = Float>
static int multiply(Product& g) {
    g.mr = tile_rows(g.m);
    // as many rows at once as leave room in the cache beside a panel, but enough to read the panels seldom
    int64_t at_once = ceil_div(least(g.m, 1 + (int64_t)400000 / (g.k + 1)), g.mr) * g.mr;
    if (at_once < 8 * g.mr) at_once = 8 * g.mr;
    int64_t blocks = ceil_div(g.m, at_once);
    at_once = ceil_div(ceil_div(g.m, g.mr), blocks) * g.mr;
    g.packed = scratch(kPackedLeft, (size_t)(at_once * g.k + 1));
    if (!g.packed) return ZOO_OUT_OF_MEMORY;
    int64_t panels = ceil_div(g.n, NR), workers = threads();
    const bool many = workers == 1 || panels >= 4 * workers;
    // a panel that only one task reads is packed by that, and read from its core's own cache
    if (!g.b && (blocks > 1 || (!many && g.m > g.mr))) {
        Packing whole = *g.unpacked;
        whole.to = scratch(kPackedRight, (size_t)(panels * NR * g.k + 1));
        if (!whole.to) return ZOO_OUT_OF_MEMORY;
        parallel(panels, pack_in_place, &whole);
        g.b = whole.to;
    }
    for (g.row0 = 0; g.row0 < g.m; g.row0 += at_once) {
        g.rows = least(at_once, g.m - g.row0);
        g.tiles = ceil_div(g.rows, g.mr);
        g.groups = many ? 1 : least(g.tiles, ceil_div(4 * workers, panels));
        parallel(g.tiles, pack_rows<K>, &g);
        parallel(panels * g.groups, panel_by_tiles<K>, &g);
    }
    return g.failed ? ZOO_OUT_OF_MEMORY : ZOO_OK;
}

static int linear(const zoo_linear_args* x) {
    if (x->m <= 0 || x->b->n <= 0) return ZOO_OK;
    Product g{};
    g.a = x->a, g.lda = x->lda, g.step = 1, g.m = x->m, g.n = x->b->n, g.k = x->k, g.b = x->b->data;
    g.finish = {.column_bias = x->bias, .residual = x->residual, .ldr = x->ldr, .c = x->c, .ldc = x->ldc, .activation = x->activation};
    return multiply(g);
}

typedef int (*Linear)(const zoo_linear_args*);
static zoo_packed* new_packed(int64_t groups, int64_t m, int64_t n, int64_t k, int64_t floats, Linear linear, int32_t layout = 0);

static zoo_packed* pack_right(const float* b, int64_t k, int64_t n, int64_t stride_k, int64_t stride_n) {
    zoo_packed* packed = new_packed(1, 0, n, k, ceil_div(n, NR) * NR * k, linear);
    if (!packed) return nullptr;
    Packing job{b, k, n, stride_k, stride_n, packed->data};
    parallel(ceil_div(n, NR), pack_in_place, &job);
    return packed;
}

// A batch of products: each packs its own right-hand side, unless one serves all.
struct Batched {
    const zoo_matmul_args* args;
    bool failed;
};

static void matmul_one(void* context, int64_t i) {
    Batched& job = *(Batched*)context;
    const zoo_matmul_args& x = *job.args;
    int64_t i2 = i % x.batch[2], i1 = i / x.batch[2] % x.batch[1], i0 = i / (x.batch[2] * x.batch[1]);
    const float* a = x.a + i0 * x.a_batch[0] + i1 * x.a_batch[1] + i2 * x.a_batch[2];
    const float* b = x.b + i0 * x.b_batch[0] + i1 * x.b_batch[1] + i2 * x.b_batch[2];
    Packing unpacked{b, x.k, x.n, x.b_row, x.b_col, nullptr};
    Product g{};
    g.a = a, g.lda = x.a_row, g.step = x.a_col, g.m = x.m, g.n = x.n, g.k = x.k, g.unpacked = &unpacked;
    const float* residual = x.residual ? x.residual + i * x.m * x.ldr : nullptr;
    g.finish = {.column_bias = x.bias, .residual = residual, .ldr = x.ldr, .c = x.c + i * x.m * x.n, .ldc = x.n, .activation = x.activation};
    if (multiply(g) != ZOO_OK) __atomic_store_n(&job.failed, true, __ATOMIC_RELAXED);
}

static int matmul(const zoo_matmul_args* x) {
    int64_t count = x->batch[0] * x->batch[1] * x->batch[2];
    if (count <= 0 || x->m <= 0 || x->n <= 0) return ZOO_OK;
    Batched job{x, false};
    // few products: each on all threads; many: each on one
    if (count < 2 * threads())
        for (int64_t i = 0; i < count; ++i) matmul_one(&job, i);
    else
        parallel(count, matmul_one, &job);
    return job.failed ? ZOO_OUT_OF_MEMORY : ZOO_OK;
}

}  // namespace zoo::ZOO_ISA
