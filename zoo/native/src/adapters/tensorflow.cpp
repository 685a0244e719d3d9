// The kernels as TensorFlow operations, over its C API for kernels and operations (tensorflow/c/kernels.h, ops.h and
// tf_tensor.h), whose few functions are declared here and looked up in the libtensorflow_framework that is loaded; nothing
// of TensorFlow is needed to build this. Operations are registered while tf.load_op_library loads the library. Their
// gradients are in zoo/native/adapters/tensorflow.py. Arrays are dense; attention's are [B, T, H, D].
#include <dlfcn.h>

#include <cstring>
#include <string>

#include "../../zoo_native.h"

namespace {

#define FUNCTIONS(X)                                                                                                   \
    X(void*, TF_NewStatus, ())                                                                                         \
    X(void, TF_DeleteStatus, (void*))                                                                                  \
    X(void, TF_SetStatus, (void*, int32_t, const char*))                                                               \
    X(int32_t, TF_GetCode, (const void*))                                                                              \
    X(const char*, TF_Message, (const void*))                                                                          \
    X(void*, TF_NewOpDefinitionBuilder, (const char*))                                                                 \
    X(void, TF_OpDefinitionBuilderAddAttr, (void*, const char*))                                                       \
    X(void, TF_OpDefinitionBuilderAddInput, (void*, const char*))                                                      \
    X(void, TF_OpDefinitionBuilderAddOutput, (void*, const char*))                                                     \
    X(void, TF_OpDefinitionBuilderSetShapeInferenceFunction, (void*, void (*)(void*, void*)))                          \
    X(void, TF_RegisterOpDefinition, (void*, void*))                                                                   \
    X(void*, TF_NewShapeHandle, ())                                                                                    \
    X(void, TF_DeleteShapeHandle, (void*))                                                                             \
    X(int64_t, TF_ShapeInferenceContextNumInputs, (void*))                                                             \
    X(void, TF_ShapeInferenceContextGetInput, (void*, int32_t, void*, void*))                                          \
    X(void, TF_ShapeInferenceContextSetOutput, (void*, int32_t, void*, void*))                                         \
    X(int32_t, TF_ShapeInferenceContextRankKnown, (void*, void*))                                                      \
    X(void, TF_ShapeInferenceContextSubshape, (void*, void*, int64_t, int64_t, void*, void*))                          \
    X(void, TF_ShapeInferenceContextConcatenateShapes, (void*, void*, void*, void*, void*))                            \
    X(void, TF_ShapeInferenceContextSetUnknownShape, (void*, void*))                                                   \
    X(void*, TF_NewKernelBuilder,                                                                                      \
      (const char*, const char*, void* (*)(void*), void (*)(void*, void*), void (*)(void*)))                           \
    X(void, TF_RegisterKernelBuilder, (const char*, void*, void*))                                                     \
    X(void, TF_OpKernelConstruction_GetAttrInt64, (void*, const char*, int64_t*, void*))                               \
    X(void, TF_OpKernelConstruction_GetAttrFloat, (void*, const char*, float*, void*))                                 \
    X(void, TF_OpKernelConstruction_Failure, (void*, void*))                                                           \
    X(void, TF_OpKernelContext_Failure, (void*, void*))                                                                \
    X(int32_t, TF_NumInputs, (void*))                                                                                  \
    X(void, TF_GetInput, (void*, int32_t, void**, void*))                                                              \
    X(void*, TF_AllocateOutput, (void*, int32_t, int32_t, const int64_t*, int32_t, size_t, void*))                     \
    X(void, TF_DeleteTensor, (void*))                                                                                  \
    X(void*, TF_TensorData, (const void*))                                                                             \
    X(int32_t, TF_TensorType, (const void*))                                                                           \
    X(int32_t, TF_NumDims, (const void*))                                                                              \
    X(int64_t, TF_Dim, (const void*, int32_t))
#define DECLARE(result, name, parameters) result(*name) parameters = nullptr;
FUNCTIONS(DECLARE)

constexpr int32_t kFloat = 1, kBool = 10, kOk = 0, kInvalidArgument = 3;

struct Status {
    void* handle = TF_NewStatus();
    ~Status() { TF_DeleteStatus(handle); }
    bool ok() const { return TF_GetCode(handle) == kOk; }
};

// A tensor that is given back at the end, and what the kernels see of it.
class Own {
  public:
    ~Own() {
        if (tensor_) TF_DeleteTensor(tensor_);
    }
    bool input(void* context, int i, Status& status) {
        TF_GetInput(context, i, &tensor_, status.handle);
        if (!status.ok()) return false;
        int64_t size[ZOO_MAX_RANK];
        int rank = TF_NumDims(tensor_);
        if (rank > ZOO_MAX_RANK) {
            TF_SetStatus(status.handle, kInvalidArgument, "an array of more than eight dims");
            return false;
        }
        for (int d = 0; d < rank; ++d) size[d] = TF_Dim(tensor_, d);
        see(rank, size);
        return true;
    }
    bool output(void* context, int i, int rank, const int64_t* size, Status& status) {
        size_t bytes = sizeof(float);
        for (int d = 0; d < rank; ++d) bytes *= (size_t)size[d];
        tensor_ = TF_AllocateOutput(context, i, kFloat, size, rank, bytes, status.handle);
        if (!status.ok()) return false;
        see(rank, size);
        return true;
    }
    // [B, T, H, D] seen as [B, H, T, D].
    void heads_first() {
        for (int64_t* dims : {view.size, view.stride}) {
            int64_t t = dims[1];
            dims[1] = dims[2];
            dims[2] = t;
        }
    }
    float* data() { return (float*)const_cast<void*>(view.data); }

    zoo_view view{};

  private:
    void see(int rank, const int64_t* size) {
        int32_t type = TF_TensorType(tensor_);
        view.data = TF_TensorData(tensor_);
        view.dtype = type == kFloat ? ZOO_FLOAT32 : type == kBool ? ZOO_BOOL : -1;
        view.rank = rank;
        int64_t step = 1;
        for (int d = rank - 1; d >= 0; --d) {
            view.size[d] = size[d];
            view.stride[d] = step;
            step *= size[d];
        }
    }

    void* tensor_ = nullptr;
};

// The attributes of all operations; each reads its own.
struct Kernel {
    int64_t parts = 0, rms = 0, causal = 0, op = 0;
    float eps = 0, scale = 0;
};

template <class... Readers>
void* made(void* construction, Readers... readers) {
    Status status;
    auto* kernel = new Kernel;
    (readers(kernel, status.handle), ...);
    if (!status.ok()) TF_OpKernelConstruction_Failure(construction, status.handle);
    return kernel;
}
auto whole(void* construction, const char* name, int64_t Kernel::* field) {
    return [=](Kernel* kernel, void* status) { TF_OpKernelConstruction_GetAttrInt64(construction, name, &(kernel->*field), status); };
}
auto real(void* construction, const char* name, float Kernel::* field) {
    return [=](Kernel* kernel, void* status) { TF_OpKernelConstruction_GetAttrFloat(construction, name, &(kernel->*field), status); };
}
void gone(void* kernel) { delete (Kernel*)kernel; }

void finish(void* context, Status& status, const char* error) {
    if (error) TF_SetStatus(status.handle, kInvalidArgument, error);
    if (!status.ok()) TF_OpKernelContext_Failure(context, status.handle);
}

// One thread where TensorFlow was told to use one, else the kernels' own pool: the C API does not hand out TensorFlow's.
void alone(void*, int64_t count, zoo_body body, void* context) {
    for (int64_t i = 0; i < count; ++i) body(context, i);
}
bool single = false;
struct Pool {
    zoo_pool_of pool{alone, nullptr, 1};
    const zoo_pool_of* before = zoo_lend_pool(single ? &pool : nullptr);
    ~Pool() { zoo_lend_pool(before); }
};

// x, residual if parts & 1, weight if parts & 2, bias if parts & 4 -> out, and the sum if there is a residual
void norm(void* own, void* context) {
    auto* kernel = (const Kernel*)own;
    Status status;
    Own x, part[3], out, sum;
    const zoo_view* given[3] = {};
    bool ok = x.input(context, 0, status);
    for (int i = 0, next = 1; i < 3 && ok; ++i) {
        if (!(kernel->parts >> i & 1)) continue;
        ok = next < TF_NumInputs(context) && part[i].input(context, next++, status);
        given[i] = &part[i].view;
    }
    ok = ok && out.output(context, 0, x.view.rank, x.view.size, status);
    if (ok && given[0]) ok = sum.output(context, 1, x.view.rank, x.view.size, status);
    const char* error = nullptr;
    if (ok) {
        Pool pool;
        error = zoo_norm_views(&x.view, given[0], given[1], given[2], kernel->eps, (int32_t)kernel->rms, out.data(),
                               given[0] ? sum.data() : nullptr);
    }
    finish(context, status, error);
}

void attention(void* own, void* context) {
    auto* kernel = (const Kernel*)own;
    Status status;
    Own q, k, v, mask, out;
    bool masked = TF_NumInputs(context) > 3;
    bool ok = q.input(context, 0, status) && k.input(context, 1, status) && v.input(context, 2, status) &&
              (!masked || mask.input(context, 3, status));
    const char* error = nullptr;
    if (ok && (q.view.rank != 4 || k.view.rank != 4 || v.view.rank != 4)) {
        error = "attention takes arrays of four dims";
    } else if (ok) {
        const int64_t size[4] = {q.view.size[0], q.view.size[1], q.view.size[2], v.view.size[3]};
        if (out.output(context, 0, 4, size, status)) {
            for (Own* x : {&q, &k, &v, &out}) x->heads_first();
            Pool pool;
            error = zoo_attention_views(&q.view, &k.view, &v.view, masked ? &mask.view : nullptr, (int32_t)kernel->causal,
                                        kernel->scale, &out.view);
        }
    }
    finish(context, status, error);
}

void gated(void* own, void* context) {
    auto* kernel = (const Kernel*)own;
    Status status;
    Own x, y, out;
    const char* error = nullptr;
    if (x.input(context, 0, status) && y.input(context, 1, status) && out.output(context, 0, x.view.rank, x.view.size, status)) {
        Pool pool;
        error = zoo_gated_views(&x.view, &y.view, (int32_t)kernel->op, out.data());
    }
    finish(context, status, error);
}

void* new_norm(void* c) {
    return made(c, whole(c, "parts", &Kernel::parts), whole(c, "rms", &Kernel::rms), real(c, "eps", &Kernel::eps));
}
void* new_attention(void* c) { return made(c, whole(c, "causal", &Kernel::causal), real(c, "scale", &Kernel::scale)); }
void* new_gated(void* c) { return made(c, whole(c, "op", &Kernel::op)); }

// Every result has the first input's shape.
template <int OUTPUTS>
void like_first(void* context, void* status) {
    void* shape = TF_NewShapeHandle();
    TF_ShapeInferenceContextGetInput(context, 0, shape, status);
    for (int i = 0; i < OUTPUTS; ++i) TF_ShapeInferenceContextSetOutput(context, i, shape, status);
    TF_DeleteShapeHandle(shape);
}

// [B, T, H] of the queries, E of the values.
void attended(void* context, void* status) {
    void* shapes[5];
    for (void*& shape : shapes) shape = TF_NewShapeHandle();
    auto [q, v, lead, last, out] = shapes;
    TF_ShapeInferenceContextGetInput(context, 0, q, status);
    TF_ShapeInferenceContextGetInput(context, 2, v, status);
    if (TF_ShapeInferenceContextRankKnown(context, q) && TF_ShapeInferenceContextRankKnown(context, v)) {
        TF_ShapeInferenceContextSubshape(context, q, 0, 3, lead, status);
        TF_ShapeInferenceContextSubshape(context, v, 3, 4, last, status);
        TF_ShapeInferenceContextConcatenateShapes(context, lead, last, out, status);
        TF_ShapeInferenceContextSetOutput(context, 0, out, status);
    } else {
        TF_ShapeInferenceContextSetUnknownShape(context, status);
    }
    for (void* shape : shapes) TF_DeleteShapeHandle(shape);
}

struct Operation {
    const char* name;
    const char *inputs[4], *outputs[2], *attributes[4];
    void (*shape)(void*, void*);
    void* (*create)(void*);
    void (*compute)(void*, void*);
};

// Attributes are whole numbers and not bools: the C API of some versions reads a bool's byte where it wants a TF_Bool.
const Operation kOperations[] = {
    {"ZooNorm", {"x: float", "others: N * float"}, {"out: float"},
     {"N: int >= 0", "parts: int", "eps: float", "rms: int"}, like_first<1>, new_norm, norm},
    {"ZooAddNorm", {"x: float", "others: N * float"}, {"out: float", "sum: float"},
     {"N: int >= 1", "parts: int", "eps: float", "rms: int"}, like_first<2>, new_norm, norm},
    {"ZooAttention", {"q: float", "k: float", "v: float", "mask: N * M"}, {"out: float"},
     {"N: int >= 0", "M: {float, bool} = DT_FLOAT", "causal: int", "scale: float"}, attended, new_attention, attention},
    {"ZooGated", {"x: float", "y: float"}, {"out: float"}, {"op: int"}, like_first<1>, new_gated, gated},
};

std::string problem;

bool register_all() {
    for (const Operation& operation : kOperations) {
        Status status;
        void* builder = TF_NewOpDefinitionBuilder(operation.name);
        for (const char* attribute : operation.attributes)
            if (attribute) TF_OpDefinitionBuilderAddAttr(builder, attribute);
        for (const char* input : operation.inputs)
            if (input) TF_OpDefinitionBuilderAddInput(builder, input);
        for (const char* output : operation.outputs)
            if (output) TF_OpDefinitionBuilderAddOutput(builder, output);
        TF_OpDefinitionBuilderSetShapeInferenceFunction(builder, operation.shape);
        TF_RegisterOpDefinition(builder, status.handle);
        if (status.ok()) {
            void* kernel = TF_NewKernelBuilder(operation.name, "CPU", operation.create, operation.compute, gone);
            TF_RegisterKernelBuilder(operation.name, kernel, status.handle);
        }
        if (!status.ok()) {
            problem = TF_Message(status.handle);
            return false;
        }
    }
    return true;
}

bool look_up() {
#if defined(__APPLE__)
    void* framework = dlopen("libtensorflow_framework.2.dylib", RTLD_LAZY | RTLD_NOLOAD);
#else
    void* framework = dlopen("libtensorflow_framework.so.2", RTLD_LAZY | RTLD_NOLOAD);
#endif
    if (!framework) {
        problem = "TensorFlow 2 is not loaded";
        return false;
    }
#define FIND(result, name, parameters)                       \
    name = (result(*) parameters)dlsym(framework, #name);    \
    if (!name) {                                             \
        problem = "TensorFlow has no " #name;                \
        return false;                                        \
    }
    FUNCTIONS(FIND)
    return true;
}

// While the library is loaded.
const bool registered = look_up() && register_all();

}  // namespace

extern "C" {
// Why nothing was registered; empty if all was.
ZOO_API const char* zoo_tensorflow_problem(void) { return problem.c_str(); }
ZOO_API void zoo_tensorflow_single_thread(int32_t on) { single = on; }
}
