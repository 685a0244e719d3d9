// The CUDA kernels over a framework's arrays, for adapters: libzoo_cuda is loaded when there is a GPU to use it on.
// Arrays are dense, but attention's heads and tokens may lie in any order. Calls return nullptr, or what is wrong.
#pragma once

#include <dlfcn.h>

#include "../../zoo_cuda.h"

namespace zoo::gpu {

// What an adapter's kernel is for.
enum class On { cpu, gpu };

enum { kBfloat16 = 2 };  // beside zoo_dtype, for views of a GPU's arrays

inline decltype(&zoo_cuda_norm) norm_kernel;
inline decltype(&zoo_cuda_gated) gated_kernel;
inline decltype(&zoo_cuda_attention) attention_kernel;

inline const char* find(const char* path) {
    void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) return "libzoo_cuda cannot be loaded";
    norm_kernel = (decltype(norm_kernel))dlsym(library, "zoo_cuda_norm");
    gated_kernel = (decltype(gated_kernel))dlsym(library, "zoo_cuda_gated");
    attention_kernel = (decltype(attention_kernel))dlsym(library, "zoo_cuda_attention");
    return norm_kernel && gated_kernel && attention_kernel ? nullptr : "libzoo_cuda is of another version";
}

inline const char* said(int status) {
    switch (status) {
        case ZOO_OK: return nullptr;
        case ZOO_DEVICE_ERROR: return "CUDA refuses to launch the kernel";
        default: return "the CUDA kernel refuses these sizes";
    }
}

inline bool dense(const zoo_view& x) {
    int64_t step = 1;
    for (int i = x.rank - 1; i >= 0; --i) {
        if (x.size[i] != 1 && x.stride[i] != step) return false;
        step *= x.size[i];
    }
    return true;
}

inline bool alike(const zoo_view& x, const zoo_view& y) {
    if (x.rank != y.rank || x.dtype != y.dtype) return false;
    for (int i = 0; i < x.rank; ++i)
        if (x.size[i] != y.size[i]) return false;
    return true;
}

inline int64_t rows(const zoo_view& x) {
    int64_t n = 1;
    for (int i = 0; i + 1 < x.rank; ++i) n *= x.size[i];
    return n;
}

// The number in zoo_cuda_dtype of x's elements; -1 if there is none.
inline int32_t element(const zoo_view& x) {
    return x.dtype == ZOO_FLOAT32 ? ZOO_CUDA_FLOAT32 : x.dtype == kBfloat16 ? ZOO_CUDA_BFLOAT16 : -1;
}

inline const char* norm(const zoo_view& x, const zoo_view* residual, const zoo_view* weight, const zoo_view* bias,
                        double eps, bool rms, void* out, void* sum, void* stream) {
    if (x.rank < 1 || element(x) < 0) return "a norm on a GPU takes arrays of float32 or bfloat16";
    const int64_t cols = x.size[x.rank - 1];
    if (!dense(x) || (residual && (!alike(x, *residual) || !dense(*residual))))
        return "a norm on a GPU takes dense arrays of one shape and dtype";
    for (const zoo_view* part : {weight, bias})
        if (part && (part->rank != 1 || part->size[0] != cols || part->dtype != x.dtype || !dense(*part)))
            return "a norm's weight and bias have a number of x's dtype for each column";
    auto data = [](const zoo_view* part) { return part ? (const float*)part->data : nullptr; };
    const zoo_norm_args args{data(&x),    data(residual), data(weight), data(bias), (float*)sum, (float*)out,
                             rows(x), cols,           cols,         cols,       (float)eps,  rms};
    return said(norm_kernel(&args, element(x), stream));
}

inline const char* gated(const zoo_view& x, const zoo_view& y, int32_t op, void* out, void* stream) {
    if (x.rank < 1 || element(x) < 0 || !alike(x, y) || !dense(x) || !dense(y))
        return "gated on a GPU takes dense arrays of one shape, of float32 or bfloat16";
    const int64_t cols = x.size[x.rank - 1];
    const zoo_cuda_gated_args args{x.data, y.data, out, rows(x), cols, cols, cols, op};
    return said(gated_kernel(&args, element(x), stream));
}

// q, out [B, H, T, D], k, v [B, G, S, D] of bfloat16, with stride 1 in the last dim; mask float32 that broadcasts.
inline const char* attention(const zoo_view& q, const zoo_view& k, const zoo_view& v, const zoo_view* mask, bool causal,
                             double scale, const zoo_view& out, void* stream) {
    for (const zoo_view* x : {&q, &k, &v, &out})
        if (x->rank != 4 || x->dtype != kBfloat16 || (x->size[3] > 1 && x->stride[3] != 1) || x->size[0] != q.size[0])
            return "attention on a GPU takes bfloat16 of four dims, the last of them dense";
    if (!k.size[1] || q.size[1] % k.size[1] || v.size[1] != k.size[1] || v.size[2] != k.size[2] || k.size[3] != q.size[3])
        return "the sizes of q, k and v do not go together";
    zoo_mask added{nullptr, {}, causal};
    if (mask) {
        if (mask->dtype != ZOO_FLOAT32 || mask->rank > 4) return "attention's mask on a GPU is float32 of at most four dims";
        const int64_t size[4] = {q.size[0], q.size[1], q.size[2], k.size[2]};
        added.data = (const float*)mask->data;
        for (int i = 0; i < mask->rank; ++i) {
            const int to = 4 - mask->rank + i;
            if (mask->size[i] != 1 && mask->size[i] != size[to]) return "attention's mask does not broadcast to the scores";
            added.stride[to] = mask->size[i] == 1 ? 0 : mask->stride[i];
        }
    }
    zoo_attention_args args{};
    args.q = (const float*)q.data, args.k = (const float*)k.data, args.v = (const float*)v.data;
    args.out = (float*)const_cast<void*>(out.data);
    args.mask = &added;
    args.batch = q.size[0], args.heads = q.size[1], args.kv_group = q.size[1] / k.size[1];
    args.queries = q.size[2], args.keys = k.size[2], args.width = q.size[3], args.value_width = v.size[3];
    for (int i = 0; i < 3; ++i) {
        args.q_stride[i] = q.stride[i], args.k_stride[i] = k.stride[i];
        args.v_stride[i] = v.stride[i], args.out_stride[i] = out.stride[i];
    }
    args.scale = (float)scale;
    return said(attention_kernel(&args, stream));
}

}  // namespace zoo::gpu
