/* The kernels for NVIDIA GPUs: the structs of zoo_native.h with pointers to device memory, an element type, and a stream
   (a cudaStream_t). Calls only enqueue work; they return one of zoo_status, or ZOO_DEVICE_ERROR where CUDA refuses a launch.
   Sums are in float32 whatever the elements are. */
#ifndef ZOO_CUDA_H
#define ZOO_CUDA_H

#include "zoo_native.h"

#ifdef __cplusplus
extern "C" {
#endif

enum zoo_cuda_dtype { ZOO_CUDA_FLOAT32 = 0, ZOO_CUDA_BFLOAT16 = 1 };

/* As zoo_norm; every array, weight and bias included, has elements of `dtype`. */
ZOO_API int zoo_cuda_norm(const zoo_norm_args* args, int32_t dtype, void* stream);

/* As zoo_softmax. */
ZOO_API int zoo_cuda_softmax(const zoo_softmax_args* args, int32_t dtype, void* stream);

/* out[r, c] = op(x[r, c]) * y[r, c]: the gate and the other half of an MLP, which may be halves of one product.
   op is one of zoo_unary_op; strides are between rows; out is contiguous. */
typedef struct {
    const void* x;
    const void* y;
    void* out;
    int64_t rows, cols, stride_x, stride_y;
    int32_t op;
} zoo_cuda_gated_args;
ZOO_API int zoo_cuda_gated(const zoo_cuda_gated_args* args, int32_t dtype, void* stream);

/* qkv [B, T, (H + 2 G) D] split into q [B, H, T, D], k and v [B, G, T, D], all contiguous; q and k turned by the position's
   angles as transformers' apply_rotary_pos_emb does: x cos + (-x2, x1) sin over the first `rotary` of D, x1 and x2 being
   its halves. cos and sin are float32 [T, rotary], or [B, T, rotary] with angles_per_batch != 0. */
typedef struct {
    const void* qkv;
    const float* cos;
    const float* sin;
    void* q;
    void* k;
    void* v;
    int64_t batch, tokens, heads, kv_heads, width, rotary;
    int32_t angles_per_batch;
} zoo_cuda_rotary_args;
ZOO_API int zoo_cuda_rotary(const zoo_cuda_rotary_args* args, int32_t dtype, void* stream);

/* As zoo_attention with q, k, v and out of bfloat16 and the mask of float32; width is at most 128, values are as wide, and
   there are no offsets. */
ZOO_API int zoo_cuda_attention(const zoo_attention_args* args, void* stream);

#ifdef __cplusplus
}
#endif
#endif
