// The kernels as PyTorch operations, over the C shims that libtorch promises to keep from 2.10 on
// (torch/csrc/inductor/aoti_torch/c/shim.h and torch/csrc/stable/c/shim.h there). Nothing of torch is needed to build
// this: the shims are declared here and looked up in the libtorch that is loaded. Schemas, fakes and gradients are in
// zoo/native/adapters/torch.py.
#include <dlfcn.h>

#include <cmath>
#include <cstring>
#include <stdexcept>

#include "../../zoo_native.h"
#include "gpu.h"

namespace {

using zoo::gpu::On;
using Tensor = struct AtenTensorOpaque*;
using Library = struct TorchLibraryOpaque*;
using Value = uint64_t;  // of the operation's stack: a handle, a number's bits, or a pointer to a Value that may be absent
using Kernel = void (*)(Value*, uint64_t, uint64_t);

// Values are passed as libtorch 2.10 passes them; later ones go on doing so for who says that this is what it was built for.
constexpr uint64_t kBuiltFor = (2ull << 56) | (10ull << 48);

#define SHIMS(X)                                                                                                       \
    X(int32_t, aoti_torch_library_init_impl, (const char*, const char*, const char*, uint32_t, Library*))             \
    X(int32_t, torch_library_impl, (Library, const char*, Kernel, uint64_t))                                           \
    X(int32_t, aoti_torch_get_data_ptr, (Tensor, void**))                                                              \
    X(int32_t, aoti_torch_get_dim, (Tensor, int64_t*))                                                                 \
    X(int32_t, aoti_torch_get_sizes, (Tensor, int64_t**))                                                              \
    X(int32_t, aoti_torch_get_strides, (Tensor, int64_t**))                                                            \
    X(int32_t, aoti_torch_get_dtype, (Tensor, int32_t*))                                                               \
    X(int32_t, aoti_torch_get_device_type, (Tensor, int32_t*))                                                         \
    X(int32_t, aoti_torch_get_device_index, (Tensor, int32_t*))                                                        \
    X(int32_t, aoti_torch_empty_strided,                                                                               \
      (int64_t, const int64_t*, const int64_t*, int32_t, int32_t, int32_t, Tensor*))                                   \
    X(int32_t, aoti_torch_delete_tensor_object, (Tensor))                                                              \
    X(int32_t, aoti_torch_dtype_float32, ())                                                                           \
    X(int32_t, aoti_torch_dtype_bfloat16, ())                                                                          \
    X(int32_t, aoti_torch_dtype_bool, ())                                                                              \
    X(int32_t, torch_parallel_for, (int64_t, int64_t, int64_t, void (*)(int64_t, int64_t, void*), void*))              \
    X(int32_t, torch_get_num_threads, (uint32_t*))
#define DECLARE(result, name, parameters) result(*name) parameters = nullptr;
SHIMS(DECLARE)
// in a libtorch with CUDA alone
int32_t (*aoti_torch_get_current_cuda_stream)(int32_t device, void** stream) = nullptr;

void check(int32_t failed, const char* what) {
    if (failed) throw std::runtime_error(what);
}
void check(const char* error) {
    if (error) throw std::runtime_error(error);
}

struct Loop {
    zoo_body body;
    void* context;
};
void some(int64_t begin, int64_t end, void* loop) {
    for (int64_t i = begin; i < end; ++i) ((Loop*)loop)->body(((Loop*)loop)->context, i);
}
void on_torchs_pool(void*, int64_t count, zoo_body body, void* context) {
    Loop loop{body, context};
    torch_parallel_for(0, count, 1, some, &loop);
}

// Lends torch's threads to the kernels while it lives.
class Pool {
  public:
    Pool() {
        uint32_t threads = 1;
        torch_get_num_threads(&threads);
        pool_ = {on_torchs_pool, nullptr, (int64_t)threads};
        before_ = zoo_lend_pool(&pool_);
    }
    ~Pool() { zoo_lend_pool(before_); }

  private:
    zoo_pool_of pool_;
    const zoo_pool_of* before_;
};

// A tensor that the operation was handed, or has made; given back at the end.
class Own {
  public:
    explicit Own(Value value) : tensor_((Tensor)value) {}
    // x of an argument that may be absent: the cell around it is ours, too
    static Own optional(Value value) {
        auto* cell = (Value*)value;
        Own x(cell ? *cell : 0);
        delete cell;
        return x;
    }
    // A tensor of this one's dtype on its device.
    Own empty(int rank, const int64_t* size, const int64_t* stride) {
        int32_t dtype = 0, type = 0, index = 0;
        Tensor made = nullptr;
        check(aoti_torch_get_dtype(tensor_, &dtype) || aoti_torch_get_device_type(tensor_, &type) ||
                  aoti_torch_get_device_index(tensor_, &index) ||
                  aoti_torch_empty_strided(rank, size, stride, dtype, type, index, &made),
              "no memory for a result");
        return Own((Value)made);
    }
    Own like() {
        const zoo_view& x = *view();
        int64_t stride[ZOO_MAX_RANK], step = 1;
        for (int i = x.rank - 1; i >= 0; --i) {
            stride[i] = step;
            step *= x.size[i] > 1 ? x.size[i] : 1;
        }
        return empty(x.rank, x.size, stride);
    }
    // The stream that this tensor's GPU works on.
    void* stream() {
        int32_t index = 0;
        void* found = nullptr;
        check(aoti_torch_get_device_index(tensor_, &index) || aoti_torch_get_current_cuda_stream(index, &found),
              "no stream of the tensor's GPU");
        return found;
    }
    Own(Own&& other) : tensor_(other.tensor_) { other.tensor_ = nullptr; }
    ~Own() {
        if (tensor_) aoti_torch_delete_tensor_object(tensor_);
    }

    // To the operation's stack.
    Value give() {
        auto value = (Value)tensor_;
        tensor_ = nullptr;
        return value;
    }

    // What the kernels see; nullptr for an absent one.
    const zoo_view* view() {
        if (!tensor_) return nullptr;
        int64_t rank = 0, *size = nullptr, *stride = nullptr;
        int32_t dtype = 0;
        void* data = nullptr;
        check(aoti_torch_get_dim(tensor_, &rank) || aoti_torch_get_sizes(tensor_, &size) ||
                  aoti_torch_get_strides(tensor_, &stride) || aoti_torch_get_dtype(tensor_, &dtype) ||
                  aoti_torch_get_data_ptr(tensor_, &data),
              "a tensor without memory");
        if (rank > ZOO_MAX_RANK) check("a tensor of more than eight dims");
        view_.data = data;
        view_.rank = (int32_t)rank;
        view_.dtype = dtype == aoti_torch_dtype_float32()    ? ZOO_FLOAT32
                      : dtype == aoti_torch_dtype_bool()     ? ZOO_BOOL
                      : dtype == aoti_torch_dtype_bfloat16() ? zoo::gpu::kBfloat16
                                                             : -1;
        memcpy(view_.size, size, sizeof(int64_t) * (size_t)rank);
        memcpy(view_.stride, stride, sizeof(int64_t) * (size_t)rank);
        return &view_;
    }

    float* data() { return (float*)const_cast<void*>(view()->data); }

  private:
    Tensor tensor_;
    zoo_view view_;
};

double number(Value value) {
    double x;
    memcpy(&x, &value, sizeof x);
    return x;
}

// norm(Tensor x, Tensor? weight, Tensor? bias, float eps, bool rms) -> Tensor
template <On where>
void norm(Value* stack, uint64_t, uint64_t) {
    Own x(stack[0]), weight = Own::optional(stack[1]), bias = Own::optional(stack[2]);
    const zoo_view* shape = x.view();
    Own out = x.like();
    const double eps = number(stack[3]);
    const bool rms = stack[4] & 1;
    if constexpr (where == On::gpu) {
        check(zoo::gpu::norm(*shape, nullptr, weight.view(), bias.view(), eps, rms, out.data(), nullptr, x.stream()));
    } else {
        Pool pool;
        check(zoo_norm_views(shape, nullptr, weight.view(), bias.view(), eps, rms, out.data(), nullptr));
    }
    stack[0] = out.give();
}

// add_norm(Tensor x, Tensor residual, Tensor? weight, Tensor? bias, float eps, bool rms) -> (Tensor out, Tensor sum)
template <On where>
void add_norm(Value* stack, uint64_t, uint64_t) {
    Own x(stack[0]), residual(stack[1]), weight = Own::optional(stack[2]), bias = Own::optional(stack[3]);
    const zoo_view* shape = x.view();
    Own out = x.like(), sum = x.like();
    const double eps = number(stack[4]);
    const bool rms = stack[5] & 1;
    if constexpr (where == On::gpu) {
        check(zoo::gpu::norm(*shape, residual.view(), weight.view(), bias.view(), eps, rms, out.data(), sum.data(),
                             x.stream()));
    } else {
        Pool pool;
        check(zoo_norm_views(shape, residual.view(), weight.view(), bias.view(), eps, rms, out.data(), sum.data()));
    }
    stack[0] = out.give();
    stack[1] = sum.give();
}

// attention(Tensor q, Tensor k, Tensor v, Tensor? mask, bool causal, float scale) -> Tensor, in memory [B, T, H, E]
template <On where>
void attention(Value* stack, uint64_t, uint64_t) {
    Own q(stack[0]), k(stack[1]), v(stack[2]), mask = Own::optional(stack[3]);
    const zoo_view *queries = q.view(), *values = v.view();
    if (queries->rank != 4 || values->rank != 4) check("attention takes tensors of four dims");
    const int64_t size[4] = {queries->size[0], queries->size[1], queries->size[2], values->size[3]};
    const int64_t row = size[1] * size[3], stride[4] = {size[2] * row, size[3], row, 1};
    Own out = q.empty(4, size, stride);
    const bool causal = stack[4] & 1;
    const double scale = number(stack[5]);
    if constexpr (where == On::gpu) {
        check(zoo::gpu::attention(*queries, *k.view(), *values, mask.view(), causal, scale, *out.view(), q.stream()));
    } else {
        Pool pool;
        check(zoo_attention_views(queries, k.view(), values, mask.view(), causal, scale, out.view()));
    }
    stack[0] = out.give();
}

// gated(Tensor x, Tensor y, int op) -> Tensor
template <On where>
void gated(Value* stack, uint64_t, uint64_t) {
    Own x(stack[0]), y(stack[1]);
    const zoo_view* shape = x.view();
    Own out = x.like();
    const auto op = (int32_t)stack[2];
    if constexpr (where == On::gpu) {
        check(zoo::gpu::gated(*shape, *y.view(), op, out.data(), x.stream()));
    } else {
        Pool pool;
        check(zoo_gated_views(shape, y.view(), op, out.data()));
    }
    stack[0] = out.give();
}

template <On where>
const char* add_kernels(const char* space, const char* key) {
    Library library = nullptr;  // kept for as long as the process lives
    if (aoti_torch_library_init_impl(space, key, __FILE__, __LINE__, &library)) return "libtorch refuses the library";
    const struct {
        const char* name;
        Kernel kernel;
    } kernels[] = {{"norm", norm<where>},           {"norm.inference", norm<where>},
                   {"add_norm", add_norm<where>},   {"add_norm.inference", add_norm<where>},
                   {"attention", attention<where>}, {"attention.inference", attention<where>},
                   {"gated", gated<where>},         {"gated.inference", gated<where>}};
    for (const auto& entry : kernels)
        if (torch_library_impl(library, entry.name, entry.kernel, kBuiltFor)) return "libtorch refuses an operation";
    return nullptr;
}

}  // namespace

extern "C" {

// Registers the operations in the libtorch at `path`, which is loaded already. NULL, or what is missing.
ZOO_API const char* zoo_torch_register(const char* path) {
    void* libtorch = dlopen(path, RTLD_LAZY | RTLD_NOLOAD);
    if (!libtorch) return "libtorch is not loaded";
#define FIND(result, name, parameters)                         \
    name = (result(*) parameters)dlsym(libtorch, #name);       \
    if (!name) return "libtorch has no " #name;
    SHIMS(FIND)
    return add_kernels<On::cpu>("anyzoo", "CPU");
}

// The same for tensors on NVIDIA GPUs, afterwards: `path` is the libtorch with CUDA, `kernels` our libzoo_cuda. Their
// namespace and the dispatch key are "anyzoo" and "CUDA", but for a test that has no GPU.
ZOO_API const char* zoo_torch_register_gpu(const char* path, const char* kernels, const char* space, const char* key) {
    void* libtorch = dlopen(path, RTLD_LAZY | RTLD_NOLOAD);
    if (!libtorch) return "libtorch with CUDA is not loaded";
    const char name[] = "aoti_torch_get_current_cuda_stream";
    aoti_torch_get_current_cuda_stream = (decltype(aoti_torch_get_current_cuda_stream))dlsym(libtorch, name);
    if (!aoti_torch_get_current_cuda_stream) return "libtorch has no aoti_torch_get_current_cuda_stream";
    if (const char* problem = zoo::gpu::find(kernels)) return problem;
    return add_kernels<On::gpu>(space, key);
}
}
