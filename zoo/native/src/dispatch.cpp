// The C ABI: checks the arguments and calls the kernel of the chosen instruction set.
#include <atomic>
#include <cstdlib>
#include <cstring>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "kernels.h"

namespace zoo {
namespace {

const Kernels* best_of(const char* name) {
    const Kernels* found = nullptr;
    auto offer = [&](const Kernels& kernels) {
        if (!name || !strcmp(name, kernels.name)) found = &kernels;
    };
    offer(base::kernels);
#if defined(ZOO_X86)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        offer(avx2::kernels);
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512dq")) {
            offer(avx512::kernels);
            if (__builtin_cpu_supports("avx512vnni")) {
                offer(avx512_vnni::kernels);
                if (__builtin_cpu_supports("avx512bf16")) offer(avx512_bf16::kernels);
            }
        }
    }
#endif
    return found;
}

std::atomic<const Kernels*> active{nullptr};

const Kernels& kernels() {
    const Kernels* found = active.load(std::memory_order_acquire);
    if (found) return *found;
    // an unknown name falls back to the best: the Python side says so
    const char* name = getenv("ZOO_NATIVE_ISA");
    found = best_of(name && *name ? name : nullptr);
    if (!found) found = best_of(nullptr);
    active.store(found, std::memory_order_release);
    return *found;
}

// Freed when its thread ends.
struct Scratch {
    float* memory[kSlots] = {};
    size_t size[kSlots] = {};
    ~Scratch() {
        for (float* m : memory) release(m);
    }
};
thread_local Scratch own;

bool any_negative(std::initializer_list<int64_t> sizes) {
    for (int64_t size : sizes)
        if (size < 0) return true;
    return false;
}

bool all_positive(std::initializer_list<int64_t> sizes) {
    for (int64_t size : sizes)
        if (size < 1) return false;
    return true;
}

// Whether so many numbers, rounded up to whole tiles, have an address each.
bool countable(std::initializer_list<int64_t> sizes) {
    int64_t count = 1024;
    for (int64_t size : sizes)
        if (__builtin_add_overflow(size, 64, &size) || __builtin_mul_overflow(count, size, &count)) return false;
    return true;
}

bool known(int32_t op) { return op >= ZOO_NONE && op <= ZOO_RELU6; }

bool known_of_two(int32_t op) {
    switch (op - ZOO_GATED) {
        case ZOO_RELU:
        case ZOO_GELU:
        case ZOO_GELU_TANH:
        case ZOO_SILU:
        case ZOO_SIGMOID: return true;
        default: return op >= ZOO_COPY && op <= ZOO_DIV;
    }
}

}  // namespace

constexpr size_t kLarge = 2 << 20;  // of a large page

void* allocate(size_t bytes) {
    if (bytes > SIZE_MAX / 2) return nullptr;
    if (bytes >= kLarge) return std::aligned_alloc(kLarge, (bytes + kLarge - 1) / kLarge * kLarge);
    return std::aligned_alloc(64, (bytes + 63) / 64 * 64);
}

void release(void* memory) { std::free(memory); }

// Large pages for weights, some per cent of a product's time: in the background, once they are packed. Asked for before,
// each is looked for at its first touch, and where memory is in fragments that has taken three times as long as packing.
static zoo_packed* settled(zoo_packed* packed) {
#if defined(__linux__)
    if (packed && packed->bytes >= kLarge) madvise(packed->data, packed->bytes / kLarge * kLarge, MADV_HUGEPAGE);
#endif
    return packed;
}

float* scratch(Slot slot, size_t floats) {
    if (floats > SIZE_MAX / 8) return nullptr;
    if (own.size[slot] < floats) {
        release(own.memory[slot]);
        own.memory[slot] = (float*)allocate(sizeof(float) * floats);
        own.size[slot] = own.memory[slot] ? floats : 0;
    }
    return own.memory[slot];
}

}  // namespace zoo

using zoo::all_positive;
using zoo::any_negative;
using zoo::countable;
using zoo::kernels;
using zoo::known;
using zoo::known_of_two;
using zoo::settled;

extern "C" {

zoo_packed* zoo_pack_right(const float* b, int64_t k, int64_t n, int64_t stride_k, int64_t stride_n) {
    return zoo_pack_right_as(b, k, n, stride_k, stride_n, ZOO_AS_FLOAT32);
}

zoo_packed* zoo_pack_right_as(const float* b, int64_t k, int64_t n, int64_t stride_k, int64_t stride_n, int32_t precision) {
    if (any_negative({k, n}) || !countable({k, n}) || (!b && k * n)) return nullptr;
    switch (precision) {
        case ZOO_AS_FLOAT32: return settled(kernels().pack_right(b, k, n, stride_k, stride_n));
        case ZOO_AS_BFLOAT16: return settled(kernels().pack_bfloat16(b, k, n, stride_k, stride_n));
        case ZOO_AS_INT8: return settled(kernels().pack_int8(b, k, n, stride_k, stride_n));
        default: return nullptr;
    }
}

zoo_packed* zoo_pack_conv(const float* weight, int64_t groups, int64_t m, int64_t channels, int64_t taps, int32_t layout) {
    if (any_negative({groups, m, channels, taps}) || !countable({groups, m, channels, taps})) return nullptr;
    if ((!weight && groups * m * channels * taps) || layout < ZOO_PLANES || layout > ZOO_WINOGRAD) return nullptr;
    if (layout == ZOO_WINOGRAD && taps != 9) return nullptr;
    return settled(kernels().pack_conv(weight, groups, m, channels, taps, layout));
}

void zoo_packed_free(zoo_packed* packed) {
    if (!packed) return;
    zoo::release(packed->data);
    zoo::release(packed);
}

int64_t zoo_packed_bytes(const zoo_packed* packed) { return packed ? (int64_t)packed->bytes : 0; }

int zoo_linear(const zoo_linear_args* x) {
    if (!x->b || any_negative({x->m, x->k}) || x->b->k != x->k || !x->b->linear || !known(x->activation)) return ZOO_BAD_ARGUMENT;
    return x->b->linear(x);
}

int zoo_matmul(const zoo_matmul_args* x) {
    if (any_negative({x->m, x->n, x->k, x->batch[0], x->batch[1], x->batch[2]}) || !known(x->activation)) return ZOO_BAD_ARGUMENT;
    return kernels().matmul(x);
}

int zoo_attention(const zoo_attention_args* x) {
    if (any_negative({x->batch, x->heads, x->queries, x->keys, x->width, x->value_width})) return ZOO_BAD_ARGUMENT;
    if (x->kv_group < 1 || x->heads % x->kv_group) return ZOO_BAD_ARGUMENT;
    if (x->precision != ZOO_AS_FLOAT32 && x->precision != ZOO_AS_BFLOAT16) return ZOO_BAD_ARGUMENT;
    if (x->offsets) {
        if (x->queries != x->keys || x->offsets[0] < 0 || x->offsets[x->batch] > x->keys) return ZOO_BAD_ARGUMENT;
        for (int64_t b = 0; b < x->batch; ++b)
            if (x->offsets[b] > x->offsets[b + 1]) return ZOO_BAD_ARGUMENT;
    }
    return kernels().attention(x);
}

int zoo_norm(const zoo_norm_args* x) {
    if (any_negative({x->rows, x->cols})) return ZOO_BAD_ARGUMENT;
    return kernels().norm(x);
}

int zoo_softmax(const zoo_softmax_args* x) {
    if (any_negative({x->rows, x->cols})) return ZOO_BAD_ARGUMENT;
    return kernels().softmax(x);
}

int zoo_unary(const zoo_unary_args* x) {
    if (x->n < 0 || !known(x->op)) return ZOO_BAD_ARGUMENT;
    return kernels().unary(x);
}

int zoo_binary(const zoo_binary_args* x) {
    for (int64_t size : x->shape)
        if (size < 0) return ZOO_BAD_ARGUMENT;
    if (!known_of_two(x->op)) return ZOO_BAD_ARGUMENT;
    return kernels().binary(x);
}

int zoo_embedding(const zoo_embedding_args* x) {
    if (any_negative({x->rows, x->row_bytes, x->n})) return ZOO_BAD_ARGUMENT;
    for (int64_t i = 0; i < x->n; ++i)
        if (x->index[i] < 0 || x->index[i] >= x->rows) return ZOO_OUT_OF_RANGE;
    for (int64_t i = 0; i < x->n; ++i)
        memcpy((char*)x->out + i * x->row_bytes, (const char*)x->table + x->index[i] * x->row_bytes, (size_t)x->row_bytes);
    return ZOO_OK;
}

int zoo_conv(const zoo_conv_args* x) {
    if (!x->weight || x->weight->linear || x->groups < 1 || x->channels % x->groups || x->out_channels % x->groups || !known(x->activation))
        return ZOO_BAD_ARGUMENT;
    if (any_negative({x->batch, x->channels, x->height, x->width, x->out_channels, x->out_size[0], x->out_size[1]}))
        return ZOO_BAD_ARGUMENT;
    if (x->weight->groups != x->groups || x->weight->m != x->out_channels / x->groups ||
        x->weight->k != x->channels / x->groups * x->kernel[0] * x->kernel[1])
        return ZOO_BAD_ARGUMENT;
    if (!all_positive({x->kernel[0], x->kernel[1], x->stride[0], x->stride[1], x->dilation[0], x->dilation[1]}))
        return ZOO_BAD_ARGUMENT;
    if (x->weight->layout == ZOO_WINOGRAD)
        for (int i = 0; i < 2; ++i)
            if (x->kernel[i] != 3 || x->stride[i] != 1 || x->dilation[i] != 1) return ZOO_BAD_ARGUMENT;
    return x->weight->kernels->conv(x);
}

int zoo_depthwise(const zoo_depthwise_args* x) {
    if (any_negative({x->batch, x->channels, x->height, x->width, x->out_size[0], x->out_size[1]}) || !known(x->activation))
        return ZOO_BAD_ARGUMENT;
    if (!all_positive({x->kernel[0], x->kernel[1], x->stride[0], x->stride[1], x->dilation[0], x->dilation[1]}))
        return ZOO_BAD_ARGUMENT;
    return kernels().depthwise(x);
}

int zoo_pool(const zoo_pool_args* x) {
    if (any_negative({x->batch, x->channels, x->height, x->width, x->out_size[0], x->out_size[1]})) return ZOO_BAD_ARGUMENT;
    if (!all_positive({x->kernel[0], x->kernel[1], x->stride[0], x->stride[1]})) return ZOO_BAD_ARGUMENT;
    return kernels().pool(x);
}

int zoo_run(const zoo_step* steps, int64_t count, int64_t* failed) {
    for (int64_t i = 0; i < count; ++i) {
        int status = steps[i].kernel(steps[i].args);
        if (status != ZOO_OK) {
            *failed = i;
            return status;
        }
    }
    return ZOO_OK;
}

int zoo_set_isa(const char* name) {
    const zoo::Kernels* found = name ? zoo::best_of(name) : nullptr;
    if (!found) return ZOO_BAD_ARGUMENT;
    zoo::active.store(found, std::memory_order_release);
    return ZOO_OK;
}

const char* zoo_get_isa(void) { return kernels().name; }

int64_t zoo_abi(void) { return ZOO_ABI; }
}
