// CUDA's model of threads on the CPU, for tests: kernels written for a GPU compile with a C++ compiler and run here, a
// block at a time, its threads as fibers that change at barriers and shuffles. What it finds: wrong indices and sums,
// shared memory read before it was written, a barrier that is missing (the order of the threads can be turned round) or
// that not all threads reach. What it cannot: how a GPU rounds expf, and how fast any of it is.
//
// Barriers are as the CUDA C++ Programming Guide has them: of a block, __syncthreads; of a warp of 32, __syncwarp and
// every function that ends in _sync.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <tuple>
#include <vector>

#define __global__
#define __device__
#define __shared__ static  // a block at a time
#define __launch_bounds__(threads)

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9, cudaErrorLaunchFailure = 719 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace on_host {

constexpr size_t kShared = 163 * 1024;  // what a block may have on sm_80, the smaller of the two
constexpr size_t kStack = 64 * 1024;
enum class At { work, warp, block, end };
enum Order { forward, backward, shuffled };

inline Order order = forward;
inline size_t granted = 48 * 1024;  // without cudaFuncSetAttribute
inline bool failed = false;         // something that a GPU would not do: seen at the end of the launch
alignas(128) inline unsigned char memory[kShared];

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[kStack]};
    At at = At::work;
};

struct Block {
    ucontext_t scheduler;
    std::vector<Fiber> fibers;
    size_t now = 0;
    std::function<void()> kernel;
    alignas(32) unsigned char slots[1024][8];  // what each thread hands to its warp
};
inline Block* block = nullptr;

inline void wait(At at) {
    Fiber& own = block->fibers[block->now];
    own.at = at;
    swapcontext(&own.context, &block->scheduler);
}

inline void start() {
    block->kernel();
    wait(At::end);
}

// Lets `some` threads go on if all of them that still run stand at the same barrier.
inline bool release(Fiber* some, size_t count, At at) {
    bool any = false;
    for (size_t i = 0; i < count; ++i) {
        if (some[i].at == At::end) continue;
        if (some[i].at != at) return false;
        any = true;
    }
    for (size_t i = 0; any && i < count; ++i)
        if (some[i].at == at) some[i].at = At::work;
    return any;
}

inline void run_block(size_t threads) {
    auto& fibers = block->fibers;
    for (auto& fiber : fibers) {
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = kStack;
        fiber.context.uc_link = nullptr;
        fiber.at = At::work;
        makecontext(&fiber.context, start, 0);
    }
    std::vector<size_t> turns(threads);
    for (size_t i = 0; i < threads; ++i) turns[i] = order == backward ? threads - 1 - i : i;
    uint32_t random = 1;
    for (;;) {
        if (order == shuffled)
            for (size_t i = threads - 1; i > 0; --i) {
                random = random * 1664525u + 1013904223u;
                std::swap(turns[i], turns[(random >> 8) % (i + 1)]);
            }
        for (size_t i : turns) {
            if (fibers[i].at != At::work) continue;
            block->now = i;
            threadIdx = dim3((unsigned)i);
            swapcontext(&block->scheduler, &fibers[i].context);
        }
        bool moved = false;
        for (size_t i = 0; i < threads; i += 32) moved |= release(&fibers[i], std::min<size_t>(32, threads - i), At::warp);
        if (!moved && !release(fibers.data(), threads, At::block)) break;
    }
    for (auto& fiber : fibers) failed |= fiber.at != At::end;  // some wait for others who never come
}

template <class... A, size_t... I>
cudaError_t launch(void (*kernel)(A...), dim3 grid, dim3 threads, void** args, std::index_sequence<I...>) {
    static Block own;
    if (own.fibers.size() != threads.x) own.fibers = std::vector<Fiber>(threads.x);
    own.kernel = [&] { kernel(*(A*)args[I]...); };
    block = &own;
    failed = false;
    gridDim = grid, blockDim = threads;
    for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z)
        for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
            for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) {
                memset(memory, 0xff, kShared);  // not a number, in every type
                run_block(threads.x);
            }
    block = nullptr;
    return failed ? cudaErrorLaunchFailure : cudaSuccess;
}

}  // namespace on_host

inline void __syncthreads() { on_host::wait(on_host::At::block); }
inline void __syncwarp() { on_host::wait(on_host::At::warp); }

template <class T>
T __shfl_xor_sync(unsigned, T x, int mask) {
    static_assert(sizeof(T) <= 8);
    const unsigned lane = threadIdx.x;
    memcpy(on_host::block->slots[lane], &x, sizeof(T));
    __syncwarp();
    memcpy(&x, on_host::block->slots[lane ^ (unsigned)mask], sizeof(T));
    __syncwarp();
    return x;
}

template <class... A>
cudaError_t cudaLaunchKernel(void (*kernel)(A...), dim3 grid, dim3 threads, void** args, size_t bytes, cudaStream_t) {
    if (!threads.x || threads.x > 1024 || threads.x % 32 || threads.y != 1 || threads.z != 1) return cudaErrorInvalidConfiguration;
    if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535) return cudaErrorInvalidConfiguration;
    if (bytes > on_host::granted) return cudaErrorInvalidValue;
    return on_host::launch(kernel, grid, threads, args, std::index_sequence_for<A...>{});
}

template <class F>
cudaError_t cudaFuncSetAttribute(F*, cudaFuncAttribute, int bytes) {
    if ((size_t)bytes > on_host::kShared) return cudaErrorInvalidValue;
    on_host::granted = (size_t)bytes;
    return cudaSuccess;
}
