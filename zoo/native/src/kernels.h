// What the instruction sets' units (kernels.cpp, compiled once for each) offer to the dispatcher, and what it offers to them.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "../zoo_native.h"

namespace zoo {

struct Kernels {
    const char* name;
    zoo_packed* (*pack_right)(const float*, int64_t, int64_t, int64_t, int64_t);
    zoo_packed* (*pack_bfloat16)(const float*, int64_t, int64_t, int64_t, int64_t);
    zoo_packed* (*pack_int8)(const float*, int64_t, int64_t, int64_t, int64_t);
    zoo_packed* (*pack_conv)(const float*, int64_t, int64_t, int64_t, int64_t, int32_t);
    int (*matmul)(const zoo_matmul_args*);
    int (*attention)(const zoo_attention_args*);
    int (*norm)(const zoo_norm_args*);
    int (*softmax)(const zoo_softmax_args*);
    int (*unary)(const zoo_unary_args*);
    int (*binary)(const zoo_binary_args*);
    int (*conv)(const zoo_conv_args*);
    int (*depthwise)(const zoo_depthwise_args*);
    int (*pool)(const zoo_pool_args*);
};

namespace base {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
namespace avx512_vnni {
extern const Kernels kernels;
}
namespace avx512_bf16 {
extern const Kernels kernels;
}

// Memory aligned to a cache line; NULL if there is none.
void* allocate(size_t bytes);
void release(void* memory);

// This thread's scratch memory, kept between calls; one per slot. NULL if there is none.
enum Slot { kPackedLeft, kPackedRight, kAttention, kConv, kMask, kRowScales, kSlots };
float* scratch(Slot slot, size_t floats);

// body(i) for every i below count, on the pool or the caller's parallel-for.
void parallel(int64_t count, zoo_body body, void* context);
int64_t threads();

}  // namespace zoo

// data: right-hand sides as panels [k][nr] (columns beyond n are zero), left-hand ones as tiles [k][mr] per group. Of a
// convolution's weights m and k are those of a group.
struct zoo_packed {
    const zoo::Kernels* kernels;
    int (*linear)(const zoo_linear_args*);  // of right-hand sides
    int64_t groups, m, n, k;
    int32_t layout;
    float* data;
    size_t bytes;
};
