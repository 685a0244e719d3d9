// The kernels as PyTorch operations, over the C shims that libtorch promises to keep from 2.10 on
// (torch/csrc/inductor/aoti_torch/c/shim.h and torch/csrc/stable/c/shim.h there). Nothing of torch is needed to build
// this: the shims are declared here and looked up in the libtorch that is loaded. Schemas, fakes and gradients are in
// zoo/native/adapters/torch.py.
#include <dlfcn.h>

#include <cmath>
#include <cstring>
#include <stdexcept>

#include "../../zoo_native.h"

namespace {

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
    X(int32_t, aoti_torch_empty_strided,                                                                               \
      (int64_t, const int64_t*, const int64_t*, int32_t, int32_t, int32_t, Tensor*))                                   \
    X(int32_t, aoti_torch_delete_tensor_object, (Tensor))                                                              \
    X(int32_t, aoti_torch_dtype_float32, ())                                                                           \
    X(int32_t, aoti_torch_dtype_bool, ())                                                                              \
    X(int32_t, aoti_torch_device_type_cpu, ())                                                                         \
    X(int32_t, torch_parallel_for, (int64_t, int64_t, int64_t, void (*)(int64_t, int64_t, void*), void*))              \
    X(int32_t, torch_get_num_threads, (uint32_t*))
#define DECLARE(result, name, parameters) result(*name) parameters = nullptr;
SHIMS(DECLARE)

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
    static Own empty(int rank, const int64_t* size, const int64_t* stride) {
        Tensor made = nullptr;
        check(aoti_torch_empty_strided(rank, size, stride, aoti_torch_dtype_float32(), aoti_torch_device_type_cpu(), 0, &made),
              "no memory for a result");
        return Own((Value)made);
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
        view_.dtype = dtype == aoti_torch_dtype_float32() ? ZOO_FLOAT32 : dtype == aoti_torch_dtype_bool() ? ZOO_BOOL : -1;
        memcpy(view_.size, size, sizeof(int64_t) * (size_t)rank);
        memcpy(view_.stride, stride, sizeof(int64_t) * (size_t)rank);
        return &view_;
    }

    float* data() { return (float*)const_cast<void*>(view()->data); }

  private:
    Tensor tensor_;
    zoo_view view_;
};

Own like(const zoo_view& x) {
    int64_t stride[ZOO_MAX_RANK], step = 1;
    for (int i = x.rank - 1; i >= 0; --i) {
        stride[i] = step;
        step *= x.size[i] > 1 ? x.size[i] : 1;
    }
    return Own::empty(x.rank, x.size, stride);
}

double number(Value value) {
    double x;
    memcpy(&x, &value, sizeof x);
    return x;
}

// norm(Tensor x, Tensor? weight, Tensor? bias, float eps, bool rms) -> Tensor
void norm(Value* stack, uint64_t, uint64_t) {
    Own x(stack[0]), weight = Own::optional(stack[1]), bias = Own::optional(stack[2]);
    const zoo_view* shape = x.view();
    Own out = like(*shape);
    Pool pool;
    check(zoo_norm_views(shape, nullptr, weight.view(), bias.view(), number(stack[3]), stack[4] & 1, out.data(), nullptr));
    stack[0] = out.give();
}

// add_norm(Tensor x, Tensor residual, Tensor? weight, Tensor? bias, float eps, bool rms) -> (Tensor out, Tensor sum)
void add_norm(Value* stack, uint64_t, uint64_t) {
    Own x(stack[0]), residual(stack[1]), weight = Own::optional(stack[2]), bias = Own::optional(stack[3]);
    const zoo_view* shape = x.view();
    Own out = like(*shape), sum = like(*shape);
    Pool pool;
    check(zoo_norm_views(shape, residual.view(), weight.view(), bias.view(), number(stack[4]), stack[5] & 1, out.data(),
                         sum.data()));
    stack[0] = out.give();
    stack[1] = sum.give();
}

// attention(Tensor q, Tensor k, Tensor v, Tensor? mask, bool causal, float scale) -> Tensor, in memory [B, T, H, E]
void attention(Value* stack, uint64_t, uint64_t) {
    Own q(stack[0]), k(stack[1]), v(stack[2]), mask = Own::optional(stack[3]);
    const zoo_view *queries = q.view(), *values = v.view();
    if (queries->rank != 4 || values->rank != 4) check("attention takes tensors of four dims");
    const int64_t size[4] = {queries->size[0], queries->size[1], queries->size[2], values->size[3]};
    const int64_t row = size[1] * size[3], stride[4] = {size[2] * row, size[3], row, 1};
    Own out = Own::empty(4, size, stride);
    Pool pool;
    check(zoo_attention_views(queries, k.view(), values, mask.view(), stack[4] & 1, number(stack[5]), out.view()));
    stack[0] = out.give();
}

// gated(Tensor x, Tensor y, int op) -> Tensor
void gated(Value* stack, uint64_t, uint64_t) {
    Own x(stack[0]), y(stack[1]);
    const zoo_view* shape = x.view();
    Own out = like(*shape);
    Pool pool;
    check(zoo_gated_views(shape, y.view(), (int32_t)stack[2], out.data()));
    stack[0] = out.give();
}

}  // namespace

// Registers the operations in the libtorch at `path`, which is loaded already. NULL, or what is missing.
extern "C" ZOO_API const char* zoo_torch_register(const char* path) {
    void* libtorch = dlopen(path, RTLD_LAZY | RTLD_NOLOAD);
    if (!libtorch) return "libtorch is not loaded";
#define FIND(result, name, parameters)                         \
    name = (result(*) parameters)dlsym(libtorch, #name);       \
    if (!name) return "libtorch has no " #name;
    SHIMS(FIND)
    Library library = nullptr;  // kept for as long as the process lives
    if (aoti_torch_library_init_impl("anyzoo", "CPU", __FILE__, __LINE__, &library)) return "libtorch refuses the library";
    const struct {
        const char* name;
        Kernel kernel;
    } kernels[] = {{"norm", norm},           {"norm.inference", norm},           {"add_norm", add_norm}, {"add_norm.inference", add_norm},
                   {"attention", attention}, {"attention.inference", attention}, {"gated", gated},       {"gated.inference", gated}};
    for (const auto& entry : kernels)
        if (torch_library_impl(library, entry.name, entry.kernel, kBuiltFor)) return "libtorch refuses an operation";
    return nullptr;
}
