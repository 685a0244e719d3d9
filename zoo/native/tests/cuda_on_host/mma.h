// Products of 16 x 16 tiles on the CPU, for tests: what nvcuda::wmma does for a warp together, each lane does here for
// itself, between barriers. Alignments are what the CUDA C++ Programming Guide asks for; one that is not fails the launch.
#pragma once

#include "cuda_bf16.h"
#include "cuda_runtime.h"

namespace nvcuda::wmma {

struct matrix_a;
struct matrix_b;
struct accumulator;
struct row_major;
struct col_major;
enum layout_t { mem_row_major, mem_col_major };

template <class Use, int M, int N, int K, class T, class Layout = void>
struct fragment {
    static_assert(M == 16 && N == 16 && K == 16);
    float x[16][16];
};

inline float number(float x) { return x; }
inline float number(__nv_bfloat16 x) { return __bfloat162float(x); }

inline void aligned(const void* p, unsigned row_bytes) { on_host::failed |= (uintptr_t)p % 32 != 0 || row_bytes % 16 != 0; }

template <class T>
void read(float (&x)[16][16], const T* from, unsigned row, bool turned) {
    __syncwarp();
    aligned(from, row * sizeof(T));
    for (int i = 0; i < 16; ++i)
        for (int j = 0; j < 16; ++j) x[i][j] = number(turned ? from[j * row + i] : from[i * row + j]);
    __syncwarp();
}

template <class Use, class T, class Layout>
void load_matrix_sync(fragment<Use, 16, 16, 16, T, Layout>& to, const T* from, unsigned row) {
    read(to.x, from, row, std::is_same_v<Layout, col_major>);
}

inline void load_matrix_sync(fragment<accumulator, 16, 16, 16, float>& to, const float* from, unsigned row, layout_t layout) {
    read(to.x, from, row, layout == mem_col_major);
}

inline void store_matrix_sync(float* to, const fragment<accumulator, 16, 16, 16, float>& from, unsigned row, layout_t layout) {
    __syncwarp();
    aligned(to, row * sizeof(float));
    for (int i = 0; i < 16; ++i)
        for (int j = 0; j < 16; ++j) (layout == mem_col_major ? to[j * row + i] : to[i * row + j]) = from.x[i][j];
    __syncwarp();
}

inline void fill_fragment(fragment<accumulator, 16, 16, 16, float>& x, float value) {
    for (auto& row : x.x) std::fill_n(row, 16, value);
}

template <class Left, class Right>
void mma_sync(fragment<accumulator, 16, 16, 16, float>& to, const Left& a, const Right& b,
              const fragment<accumulator, 16, 16, 16, float>& c) {
    for (int i = 0; i < 16; ++i)
        for (int j = 0; j < 16; ++j) {
            float sum = c.x[i][j];
            for (int k = 0; k < 16; ++k) sum += a.x[i][k] * b.x[k][j];
            to.x[i][j] = sum;
        }
}

}  // namespace nvcuda::wmma
