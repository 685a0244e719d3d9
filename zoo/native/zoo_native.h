/* The C ABI of the native engine: plain structs and functions, float32 unless said otherwise.

   Every kernel is `int zoo_<name>(const zoo_<name>_args*)` and returns one of zoo_status. Pointers are the caller's;
   strides count elements, not bytes. Legend: B batch, H heads, T queries, S keys, D width of a head, E width of a value. */
#ifndef ZOO_NATIVE_H
#define ZOO_NATIVE_H

#include <stdint.h>

#if defined(__GNUC__)
#define ZOO_API __attribute__((visibility("default")))
#else
#define ZOO_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define ZOO_ABI 5

enum zoo_status { ZOO_OK = 0, ZOO_BAD_ARGUMENT = 1, ZOO_OUT_OF_MEMORY = 2, ZOO_OUT_OF_RANGE = 3, ZOO_DEVICE_ERROR = 4 };

enum zoo_unary_op {
    ZOO_NONE = 0,
    ZOO_RELU = 1,
    ZOO_GELU = 2,
    ZOO_GELU_TANH = 3,
    ZOO_SILU = 4,
    ZOO_TANH = 5,
    ZOO_SIGMOID = 6,
    ZOO_EXP = 7,
    ZOO_ERF = 8,
    ZOO_RELU6 = 9
};

/* A matrix packed for one instruction set; opaque. */
typedef struct zoo_packed zoo_packed;

/* The right-hand side of a product: element (k, n) is b[k * stride_k + n * stride_n]. NULL: no memory. */
ZOO_API zoo_packed* zoo_pack_right(const float* b, int64_t k, int64_t n, int64_t stride_k, int64_t stride_n);
/* The same for products in another precision, float32 coming in and going out all the same:
   bfloat16: both sides are rounded to it and the sums are float32.
   int8: each column of b is scaled so that its largest number is 127, each row of a so that its range is 0 to 255, and
   the sums are exact; a row or column with a NaN or an infinity gives NaN. */
enum zoo_precision { ZOO_AS_FLOAT32 = 0, ZOO_AS_BFLOAT16 = 1, ZOO_AS_INT8 = 2 };
ZOO_API zoo_packed* zoo_pack_right_as(const float* b, int64_t k, int64_t n, int64_t stride_k, int64_t stride_n, int32_t precision);
/* Weights of a convolution, [groups][m][channels][taps], for images in one of these layouts:
   PLANES: [N, C, H, W]. LAST: [N, H, W, C]. WINOGRAD: the same, for windows of 3 x 3 that move by one (stride and dilation
   are 1), with fewer multiplications. NULL: no memory. */
enum zoo_layout { ZOO_PLANES = 0, ZOO_LAST = 1, ZOO_WINOGRAD = 2 };
ZOO_API zoo_packed* zoo_pack_conv(const float* weight, int64_t groups, int64_t m, int64_t channels, int64_t taps, int32_t layout);
ZOO_API void zoo_packed_free(zoo_packed* packed);
ZOO_API int64_t zoo_packed_bytes(const zoo_packed* packed);

/* c[m, n] = activation(a[m, k] b + bias[n]) + residual[m, n]; bias and residual may be NULL. */
typedef struct {
    const float* a;
    int64_t m, k, lda;
    const zoo_packed* b;
    const float* bias;
    const float* residual;
    int64_t ldr;
    float* c;
    int64_t ldc;
    int32_t activation;
} zoo_linear_args;
ZOO_API int zoo_linear(const zoo_linear_args* args);

/* c[i][m, n] = activation(a[i][m, k] b[i][k, n] + bias[n]) + residual[i][m, n] for every i of a batch of up to three dims;
   c is contiguous, so is residual but for the distance of its rows; bias and residual may be NULL. */
typedef struct {
    const float* a;
    const float* b;
    float* c;
    int64_t batch[3], a_batch[3], b_batch[3];
    int64_t m, n, k;
    int64_t a_row, a_col, b_row, b_col;
    const float* bias;
    const float* residual;
    int64_t ldr;
    int32_t activation;
} zoo_matmul_args;
ZOO_API int zoo_matmul(const zoo_matmul_args* args);

/* What is added to the scores: NULL data adds nothing, strides (B, H, T, S) may be 0. With causal != 0 a query sees the
   keys up to its own position, counted from the left. */
typedef struct {
    const float* data;
    int64_t stride[4];
    int32_t causal;
} zoo_mask;

/* out = softmax(q k^T * scale + mask) v. Innermost strides of q, k, v and out are 1; the others are of B, H, and T or S.
   A query with no key gives zeros if there is a mask. `kv_group` query heads share a head of k and v.
   With offsets, `batch` sequences lie one after another along T and S: number b from offsets[b] to offsets[b + 1], those
   of queries and keys being the same. The strides of B are not read then but for the mask, which counts T and S within
   the sequence; queries and keys are the lengths of all together. */
typedef struct {
    const float* q;
    const float* k;
    const float* v;
    const zoo_mask* mask; /* may be NULL */
    float* out;
    int64_t batch, heads, kv_group, queries, keys, width, value_width;
    int64_t q_stride[3], k_stride[3], v_stride[3], out_stride[3];
    float scale;
    int32_t precision; /* of the two products: ZOO_AS_FLOAT32, or ZOO_AS_BFLOAT16 where there are instructions for it */
    const int64_t* offsets; /* batch + 1 of them; may be NULL */
} zoo_attention_args;
ZOO_API int zoo_attention(const zoo_attention_args* args);

/* Rows normalised: (x - mean) / sqrt(variance + eps) * weight + bias, or with rms != 0 x / sqrt(mean(x * x) + eps) * weight.
   With a residual x is x + residual, which is also written to `sum` if that is not NULL. Strides are between rows. */
typedef struct {
    const float* x;
    const float* residual;
    const float* weight;
    const float* bias;
    float* sum;
    float* out;
    int64_t rows, cols, stride_x, stride_residual;
    float eps;
    int32_t rms;
} zoo_norm_args;
ZOO_API int zoo_norm(const zoo_norm_args* args);

/* Softmax of contiguous rows. */
typedef struct {
    const float* x;
    float* out;
    int64_t rows, cols;
} zoo_softmax_args;
ZOO_API int zoo_softmax(const zoo_softmax_args* args);

/* Element by element over n contiguous numbers; op is one of zoo_unary_op. */
typedef struct {
    const float* x;
    float* out;
    int64_t n;
    int32_t op;
} zoo_unary_args;
ZOO_API int zoo_unary(const zoo_unary_args* args);

enum zoo_binary_op {
    ZOO_COPY = 0, /* a alone; b is not read */
    ZOO_ADD = 1,
    ZOO_SUB = 2,
    ZOO_MUL = 3,
    ZOO_DIV = 4,
    ZOO_GATED = 100 /* + ZOO_RELU, _GELU, _GELU_TANH, _SILU or _SIGMOID: op(a) * b */
};

/* Element by element over arrays with any strides, 0 where they are broadcast; out is contiguous. Leading dims may be 1. */
typedef struct {
    const float* a;
    const float* b;
    float* out;
    int64_t shape[6], a_stride[6], b_stride[6];
    int32_t op;
} zoo_binary_args;
ZOO_API int zoo_binary(const zoo_binary_args* args);

/* Rows of a contiguous table by index; ZOO_OUT_OF_RANGE for an index outside of it. */
typedef struct {
    const void* table;
    const int64_t* index;
    void* out;
    int64_t rows, row_bytes, n;
} zoo_embedding_args;
ZOO_API int zoo_embedding(const zoo_embedding_args* args);

/* Cross-correlation of [N, C, H, W] with packed [out, C / groups, KH, KW]: out = activation(conv + bias[out] + residual).
   x, residual and out are contiguous in the layout that the weight is packed for. One dim: H = KH = 1. */
typedef struct {
    const float* x;
    const zoo_packed* weight;
    const float* bias;
    const float* residual;
    float* out;
    int64_t batch, channels, height, width, out_channels, groups;
    int64_t kernel[2], stride[2], pad_before[2], dilation[2], out_size[2];
    int32_t activation;
} zoo_conv_args;
ZOO_API int zoo_conv(const zoo_conv_args* args);

/* The same with one input and one output channel a group; the weight is plain [channels, KH, KW], or
   [KH, KW, channels] where the images are [N, H, W, C]. */
typedef struct {
    const float* x;
    const float* weight;
    const float* bias;
    float* out;
    int64_t batch, channels, height, width;
    int64_t kernel[2], stride[2], pad_before[2], dilation[2], out_size[2];
    int32_t activation;
    int32_t last;
} zoo_depthwise_args;
ZOO_API int zoo_depthwise(const zoo_depthwise_args* args);

/* Windows of contiguous [N, C, H, W], or with last != 0 of [N, H, W, C]: their maximum (padding counts as -inf), or with sum != 0 their sum. */
typedef struct {
    const float* x;
    float* out;
    int64_t batch, channels, height, width;
    int64_t kernel[2], stride[2], pad_before[2], out_size[2];
    int32_t sum;
    int32_t last;
} zoo_pool_args;
ZOO_API int zoo_pool(const zoo_pool_args* args);

/* The kernels over a framework's own arrays, for adapters: what does not fit a kernel as it lies is copied, masks may be
   of truth values and broadcast. They return NULL, or a message that lives as long as the library. */
enum zoo_dtype { ZOO_FLOAT32 = 0, ZOO_BOOL = 1 };
enum { ZOO_MAX_RANK = 8 };
typedef struct {
    const void* data;
    int32_t dtype;
    int32_t rank;
    int64_t size[ZOO_MAX_RANK], stride[ZOO_MAX_RANK];
} zoo_view;
/* Over the last dim; residual has x's shape, weight and bias are [cols], each may be NULL; out and sum are contiguous. */
ZOO_API const char* zoo_norm_views(const zoo_view* x, const zoo_view* residual, const zoo_view* weight, const zoo_view* bias,
                                   double eps, int32_t rms, float* out, float* sum);
/* q [B, H, T, D], k [B, G, S, D], v [B, G, S, E], mask any shape that broadcasts to [B, H, T, S], or NULL: true where a
   query sees a key, or numbers that are added. `out` fills its memory, with stride 1 in the last dim. */
ZOO_API const char* zoo_attention_views(const zoo_view* q, const zoo_view* k, const zoo_view* v, const zoo_view* mask,
                                        int32_t causal, double scale, const zoo_view* out);
/* op(x) * y, op being one that ZOO_GATED takes; out is contiguous. */
ZOO_API const char* zoo_gated_views(const zoo_view* x, const zoo_view* y, int32_t op, float* out);

/* A recorded program: kernels with their arguments, run one after another. Stops at the first failure and puts its
   position into *failed. */
typedef struct {
    int (*kernel)(const void* args);
    const void* args;
} zoo_step;
ZOO_API int zoo_run(const zoo_step* steps, int64_t count, int64_t* failed);

/* Threads: 0 takes as many as the process may run on. A call that finds the pool busy runs on its own thread. */
ZOO_API int zoo_set_threads(int64_t threads);
ZOO_API int64_t zoo_get_threads(void);
/* The caller's own parallel-for in place of the pool; NULL puts the pool back. */
typedef void (*zoo_body)(void* context, int64_t index);
typedef void (*zoo_parallel_for)(void* user, int64_t count, zoo_body body, void* context);
ZOO_API void zoo_set_parallel_for(zoo_parallel_for parallel_for, void* user);

/* The calling thread's own pool, for the calls that follow on it: an adapter lends its framework's so that two pools do
   not compete. NULL ends it. What was set before is given back. */
typedef struct {
    zoo_parallel_for parallel_for;
    void* user;
    int64_t threads;
} zoo_pool_of;
ZOO_API const zoo_pool_of* zoo_lend_pool(const zoo_pool_of* pool);

/* Instruction sets: "base", "avx2", "avx512", "avx512_vnni" (int8), "avx512_bf16" (int8 and bfloat16). Setting one that this machine lacks is ZOO_BAD_ARGUMENT.
   What is packed stays with the set it was packed for. */
ZOO_API int zoo_set_isa(const char* name);
ZOO_API const char* zoo_get_isa(void);
ZOO_API int64_t zoo_abi(void);

#ifdef __cplusplus
}
#endif
#endif
