// Normalisation with the sum before it, softmax, gated activations, and rotary embedding with the split into q, k and v.
#include "common.cuh"

namespace zoo::cuda {
namespace {

// A block a row. Each thread comes back to the numbers that it wrote itself, so that `sum` needs no barrier.
template <class T>
__global__ void norm_rows(zoo_norm_args a) {
    const int64_t n = a.cols, r = blockIdx.x;
    const T* x = (const T*)a.x + r * a.stride_x;
    const T* residual = a.residual ? (const T*)a.residual + r * a.stride_residual : nullptr;
    T* total = residual && a.sum ? (T*)a.sum + r * n : nullptr;
    T* out = (T*)a.out + r * n;
    const T *weight = (const T*)a.weight, *bias = (const T*)a.bias;
    // what is summed is what is stored: rounded, where the elements are
    auto value = [&](int64_t i) {
        if (!residual) return to_float(x[i]);
        T rounded;
        put(&rounded, to_float(x[i]) + to_float(residual[i]));
        return to_float(rounded);
    };
    float sum = 0;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
        float v = value(i);
        if (total) put(total + i, v);
        sum += a.rms ? v * v : v;
    }
    float mean = 0, variance = over_block<Sum>(sum) / (float)n;
    if (!a.rms) {
        mean = variance;
        sum = 0;
        for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
            float d = value(i) - mean;
            sum += d * d;
        }
        variance = over_block<Sum>(sum) / (float)n;
    }
    const float scale = 1.0f / sqrtf(variance + a.eps);
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
        float y = (value(i) - mean) * scale;
        if (weight) y *= to_float(weight[i]);
        if (bias) y += to_float(bias[i]);
        put(out + i, y);
    }
}

template <class T>
__global__ void softmax_rows(zoo_softmax_args a) {
    const int64_t n = a.cols, r = blockIdx.x;
    const T* x = (const T*)a.x + r * n;
    T* out = (T*)a.out + r * n;
    float most = Max::start;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) most = fmaxf(most, to_float(x[i]));
    most = over_block<Max>(most);
    float sum = 0;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) sum += expf(to_float(x[i]) - most);
    const float share = 1.0f / over_block<Sum>(sum);
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) put(out + i, expf(to_float(x[i]) - most) * share);
}

__device__ float activate(float x, int op) {
    switch (op) {
        case ZOO_RELU: return x < 0 ? 0 : x;
        case ZOO_GELU: return 0.5f * x * erfcf(x * -0.70710678f);
        case ZOO_GELU_TANH: return x / (1 + expf(-x * (1.59576912f + 0.0713548163f * x * x)));
        case ZOO_SILU: return x / (1 + expf(-x));
        case ZOO_TANH: return tanhf(x);
        case ZOO_SIGMOID: return 1 / (1 + expf(-x));
        case ZOO_EXP: return expf(x);
        case ZOO_ERF: return erff(x);
        default: return x;
    }
}

template <class T>
__global__ void gated(zoo_cuda_gated_args a) {
    const int64_t n = a.rows * a.cols, step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        const int64_t r = i / a.cols, c = i % a.cols;
        const float x = to_float(((const T*)a.x)[r * a.stride_x + c]), y = to_float(((const T*)a.y)[r * a.stride_y + c]);
        put((T*)a.out + i, activate(x, a.op) * y);
    }
}

// A number of qkv each: [b, t, head, d] with the heads of q before those of k before those of v.
template <class T>
__global__ void rotary(zoo_cuda_rotary_args a) {
    const int64_t heads = a.heads + 2 * a.kv_heads, n = a.batch * a.tokens * heads * a.width;
    const int64_t step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        const int64_t d = i % a.width, h = i / a.width % heads, t = i / (a.width * heads) % a.tokens;
        const int64_t b = i / (a.width * heads * a.tokens);
        const T* x = (const T*)a.qkv + (i - d);
        float y = to_float(x[d]);
        const bool of_q = h < a.heads, of_k = !of_q && h < a.heads + a.kv_heads;
        if ((of_q || of_k) && d < a.rotary) {
            const int64_t half = a.rotary / 2, at = ((a.angles_per_batch ? b * a.tokens : 0) + t) * a.rotary + d;
            const float other = d < half ? -to_float(x[d + half]) : to_float(x[d - half]);
            y = y * a.cos[at] + other * a.sin[at];
        }
        const int64_t own = of_q ? h : of_k ? h - a.heads : h - a.heads - a.kv_heads;
        T* out = (T*)(of_q ? a.q : of_k ? a.k : a.v);
        put(out + ((b * (of_q ? a.heads : a.kv_heads) + own) * a.tokens + t) * a.width + d, y);
    }
}

unsigned blocks_for(int64_t n) { return (unsigned)((n + 255) / 256 < 65535 ? (n + 255) / 256 : 65535); }

}  // namespace
}  // namespace zoo::cuda

using namespace zoo::cuda;

extern "C" {

int zoo_cuda_norm(const zoo_norm_args* a, int32_t dtype, void* stream) {
    if (a->rows < 0 || a->cols < 0 || a->rows > kGrid) return ZOO_BAD_ARGUMENT;
    if (!a->rows || !a->cols) return ZOO_OK;
    return by_type(dtype, [&](auto element) {
        return launch(norm_rows<decltype(element)>, (unsigned)a->rows, threads_for(a->cols), 0, stream, *a);
    });
}

int zoo_cuda_softmax(const zoo_softmax_args* a, int32_t dtype, void* stream) {
    if (a->rows < 0 || a->cols < 0 || a->rows > kGrid) return ZOO_BAD_ARGUMENT;
    if (!a->rows || !a->cols) return ZOO_OK;
    return by_type(dtype, [&](auto element) {
        return launch(softmax_rows<decltype(element)>, (unsigned)a->rows, threads_for(a->cols), 0, stream, *a);
    });
}

int zoo_cuda_gated(const zoo_cuda_gated_args* a, int32_t dtype, void* stream) {
    if (a->rows < 0 || a->cols < 0 || a->op < ZOO_NONE || a->op > ZOO_ERF) return ZOO_BAD_ARGUMENT;
    if (!a->rows || !a->cols) return ZOO_OK;
    return by_type(dtype, [&](auto element) {
        return launch(gated<decltype(element)>, blocks_for(a->rows * a->cols), 256, 0, stream, *a);
    });
}

int zoo_cuda_rotary(const zoo_cuda_rotary_args* a, int32_t dtype, void* stream) {
    if (a->batch < 0 || a->tokens < 0 || a->heads < 0 || a->kv_heads < 0 || a->width < 0) return ZOO_BAD_ARGUMENT;
    if (a->rotary < 0 || a->rotary > a->width || a->rotary % 2) return ZOO_BAD_ARGUMENT;
    const int64_t n = a->batch * a->tokens * (a->heads + 2 * a->kv_heads) * a->width;
    if (!n) return ZOO_OK;
    return by_type(dtype, [&](auto element) {
        return launch(rotary<decltype(element)>, blocks_for(n), 256, 0, stream, *a);
    });
}
}
