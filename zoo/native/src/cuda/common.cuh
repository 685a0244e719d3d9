// What the CUDA kernels share: elements as float, sums over a block, launches checked.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "../../zoo_cuda.h"

namespace zoo::cuda {

using bf16 = __nv_bfloat16;

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(bf16 x) { return __bfloat162float(x); }
__device__ inline void put(float* p, float x) { *p = x; }
__device__ inline void put(bf16* p, float x) { *p = __float2bfloat16(x); }

// A block's memory, as much of it as the launch asks for.
__device__ inline unsigned char* shared_memory() {
#ifdef __CUDACC__
    extern __shared__ __align__(128) unsigned char memory[];
    return memory;
#else
    return on_host::memory;  // zoo/native/tests/cuda_on_host
#endif
}

struct Sum {
    static constexpr float start = 0;
    __device__ static float join(float a, float b) { return a + b; }
};
struct Max {
    static constexpr float start = -INFINITY;
    __device__ static float join(float a, float b) { return fmaxf(a, b); }
};

// Over all threads of a block of whole warps, at most 1024; every thread gets the result.
template <class Fold>
__device__ float over_block(float x) {
    __shared__ float partial[32];
    for (int step = 16; step; step /= 2) x = Fold::join(x, __shfl_xor_sync(~0u, x, step));
    __syncthreads();  // the one before may still be read
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
    __syncthreads();
    x = threadIdx.x % 32 < blockDim.x / 32 ? partial[threadIdx.x % 32] : Fold::start;
    for (int step = 16; step; step /= 2) x = Fold::join(x, __shfl_xor_sync(~0u, x, step));
    return x;
}

// Whole warps for a row of n numbers.
inline unsigned threads_for(int64_t n) {
    unsigned threads = 32;
    while (threads < 1024 && threads * 4 < n) threads *= 2;
    return threads;
}

constexpr int64_t kGrid = 0x7fffffff;

// Enqueues kernel(args...); `bytes` of shared memory beyond what it declares.
template <class... A>
int launch(void (*kernel)(A...), dim3 grid, unsigned threads, size_t bytes, void* stream, A... args) {
    void* pointers[] = {&args...};
    const auto error = cudaLaunchKernel(kernel, grid, dim3(threads), pointers, bytes, (cudaStream_t)stream);
    return error == cudaSuccess ? ZOO_OK : ZOO_DEVICE_ERROR;
}

// f<T>() for the element type that `dtype` is.
template <class F>
int by_type(int32_t dtype, F f) {
    switch (dtype) {
        case ZOO_CUDA_FLOAT32: return f(float{});
        case ZOO_CUDA_BFLOAT16: return f(bf16{});
        default: return ZOO_BAD_ARGUMENT;
    }
}

}  // namespace zoo::cuda
