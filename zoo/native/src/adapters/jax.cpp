// The kernels as XLA custom calls, over the C structs of XLA's foreign function interface, version 0.1
// (xla/ffi/api/c_api.h of jaxlib), written down here so that nothing of JAX is needed to build this. XLA asks a handler
// for the version when it is registered, and refuses one that it does not know. What JAX sees of these calls is in
// zoo/native/adapters/jax.py. Arrays are dense; attention's are [B, T, H, D].
#include <sched.h>

#include <atomic>
#include <cstring>

#include "../../zoo_native.h"
#include "gpu.h"

namespace {

using zoo::gpu::On;

struct Extension {
    size_t struct_size;
    int32_t type;
    Extension* next;
};
constexpr int32_t kMetadata = 1;

struct Version {
    size_t struct_size;
    Extension* extension;
    int32_t major, minor;
};

struct Metadata {
    size_t struct_size;
    Version version;
    uint32_t traits;
};

struct MetadataExtension {
    Extension base;
    Metadata* metadata;
};

struct Buffer {
    size_t struct_size;
    Extension* extension;
    int32_t dtype;
    void* data;
    int64_t rank;
    int64_t* dims;
};
constexpr int32_t kTruth = 1, kFloat32 = 11, kBfloat16 = 16, kBuffer = 1;

struct Arrays {
    size_t struct_size;
    Extension* extension;
    int64_t size;
    int32_t* types;
    void** items;
};

struct Name {
    const char* text;
    size_t length;
};

struct Scalar {
    int32_t dtype;
    void* value;
};
constexpr int32_t kScalar = 3;

struct Attributes {
    size_t struct_size;
    Extension* extension;
    int64_t size;
    int32_t* types;
    Name** names;
    void** items;
};

struct ErrorArgs {
    size_t struct_size;
    Extension* extension;
    const char* message;
    int32_t code;
};
constexpr int32_t kInvalidArgument = 3;

struct DestroyArgs {
    size_t struct_size;
    Extension* extension;
    void* error;
};

struct StreamArgs {
    size_t struct_size;
    Extension* extension;
    void* context;
    void* stream;
};

struct ScheduleArgs {
    size_t struct_size;
    Extension* extension;
    void* context;
    void (*task)(void*);
    void* data;
};

struct ThreadsArgs {
    size_t struct_size;
    Extension* extension;
    void* context;
    int64_t* threads;
};

struct Api {
    size_t struct_size;
    Extension* extension;
    Version version;
    const void* internal;
    void* (*create_error)(ErrorArgs*);
    void* get_message;
    void (*destroy_error)(DestroyArgs*);
    void* register_handler;
    void* (*get_stream)(StreamArgs*);
    void* others[6];
    void* (*schedule)(ScheduleArgs*);
    void* (*num_threads)(ThreadsArgs*);
};

struct Frame {
    size_t struct_size;
    Extension* extension;
    const Api* api;
    void* context;
    int32_t stage;
    Arrays args, results;
    Attributes attributes;
};

// A loop that tasks of XLA's pool take part in; lives until the last of them has let go of it.
struct Loop {
    zoo_body body;
    void* context;
    int64_t count;
    std::atomic<int64_t> next{0}, done{0}, users{1};

    void run() {
        for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) {
            body(context, i);
            done.fetch_add(1, std::memory_order_release);
        }
    }
    void let_go() {
        if (users.fetch_sub(1, std::memory_order_acq_rel) == 1) delete this;
    }
};

void drop(const Frame* frame, void* error) {
    DestroyArgs args{sizeof args, nullptr, error};
    frame->api->destroy_error(&args);
}

void on_xlas_pool(void* user, int64_t count, zoo_body body, void* context) {
    auto* frame = (const Frame*)user;
    int64_t threads = 1;
    ThreadsArgs ask{sizeof ask, nullptr, frame->context, &threads};
    if (void* error = frame->api->num_threads(&ask)) drop(frame, error);
    auto* loop = new Loop{body, context, count};
    for (int64_t i = 1; i < threads && i < count; ++i) {
        loop->users.fetch_add(1, std::memory_order_relaxed);
        auto task = [](void* data) {
            ((Loop*)data)->run();
            ((Loop*)data)->let_go();
        };
        ScheduleArgs args{sizeof args, nullptr, frame->context, task, loop};
        if (void* error = frame->api->schedule(&args)) {
            drop(frame, error);
            loop->let_go();
            break;
        }
    }
    loop->run();
    // what is left runs on other threads already: nobody waits for a task that has not begun
    while (loop->done.load(std::memory_order_acquire) < count) sched_yield();
    loop->let_go();
}

class Pool {
  public:
    explicit Pool(Frame* frame) {
        int64_t threads = 1;
        ThreadsArgs ask{sizeof ask, nullptr, frame->context, &threads};
        if (void* error = frame->api->num_threads(&ask)) {
            drop(frame, error);
            threads = 1;
        }
        pool_ = {on_xlas_pool, frame, threads};
        before_ = zoo_lend_pool(&pool_);
    }
    ~Pool() { zoo_lend_pool(before_); }

  private:
    zoo_pool_of pool_;
    const zoo_pool_of* before_;
};

bool view(const Arrays& arrays, int64_t i, zoo_view* x) {
    if (i >= arrays.size || arrays.types[i] != kBuffer) return false;
    auto* buffer = (const Buffer*)arrays.items[i];
    if (buffer->rank > ZOO_MAX_RANK) return false;
    x->data = buffer->data;
    x->dtype = buffer->dtype == kFloat32    ? ZOO_FLOAT32
               : buffer->dtype == kTruth    ? ZOO_BOOL
               : buffer->dtype == kBfloat16 ? zoo::gpu::kBfloat16
                                            : -1;
    x->rank = (int32_t)buffer->rank;
    int64_t step = 1;
    for (int d = x->rank - 1; d >= 0; --d) {
        x->size[d] = buffer->dims[d];
        x->stride[d] = step;
        step *= buffer->dims[d];
    }
    return true;
}

// [B, T, H, D] seen as [B, H, T, D].
bool heads_first(const Arrays& arrays, int64_t i, zoo_view* x) {
    if (!view(arrays, i, x) || x->rank != 4) return false;
    for (int64_t* dims : {x->size, x->stride}) {
        int64_t t = dims[1];
        dims[1] = dims[2];
        dims[2] = t;
    }
    return true;
}

template <class Number>
bool attribute(const Frame* frame, const char* name, Number* value) {
    const Attributes& all = frame->attributes;
    for (int64_t i = 0; i < all.size; ++i) {
        if (all.names[i]->length != strlen(name) || memcmp(all.names[i]->text, name, strlen(name))) continue;
        if (all.types[i] != kScalar) return false;
        memcpy(value, ((const Scalar*)all.items[i])->value, sizeof *value);
        return true;
    }
    return false;
}

constexpr const char* kUnexpected = "the call's arguments are not what zoo.native.adapters.jax passes";

bool without_stream = false;  // a test, whose GPU is the CPU

// kernel(stream) on the stream that XLA has for the call.
template <class F>
const char* on_stream(Frame* frame, F kernel) {
    StreamArgs args{sizeof args, nullptr, frame->context, nullptr};
    if (!without_stream) {
        if (void* error = frame->api->get_stream(&args)) {
            drop(frame, error);
            return "the call is for a GPU, and XLA has no stream for it";
        }
    }
    return kernel(args.stream);
}

// norm(x, residual if parts & 1, weight if parts & 2, bias if parts & 4; eps, rms) -> out, and the sum if there is a residual
template <On where>
const char* norm(Frame* frame) {
    int32_t parts = 0, rms = 0;
    float eps = 0;
    if (!attribute(frame, "parts", &parts) || !attribute(frame, "eps", &eps) || !attribute(frame, "rms", &rms)) return kUnexpected;
    zoo_view x, part[3], out, sum{};
    const zoo_view* given[3] = {};
    if (!view(frame->args, 0, &x) || !view(frame->results, 0, &out)) return kUnexpected;
    for (int64_t i = 0, next = 1; i < 3; ++i) {
        if (!(parts >> i & 1)) continue;
        if (!view(frame->args, next++, &part[i])) return kUnexpected;
        given[i] = &part[i];
    }
    if (given[0] && !view(frame->results, 1, &sum)) return kUnexpected;
    void *to = const_cast<void*>(out.data), *total = given[0] ? const_cast<void*>(sum.data) : nullptr;
    if constexpr (where == On::gpu) {
        return on_stream(frame, [&](void* stream) {
            return zoo::gpu::norm(x, given[0], given[1], given[2], eps, rms, to, total, stream);
        });
    } else {
        Pool pool(frame);
        return zoo_norm_views(&x, given[0], given[1], given[2], eps, rms, (float*)to, (float*)total);
    }
}

// attention(q, k, v, mask if there is one; causal, scale) -> out
template <On where>
const char* attention(Frame* frame) {
    int32_t causal = 0;
    float scale = 0;
    if (!attribute(frame, "causal", &causal) || !attribute(frame, "scale", &scale)) return kUnexpected;
    zoo_view q, k, v, mask, out;
    if (!heads_first(frame->args, 0, &q) || !heads_first(frame->args, 1, &k) || !heads_first(frame->args, 2, &v) ||
        !heads_first(frame->results, 0, &out))
        return kUnexpected;
    bool masked = frame->args.size > 3;
    if (masked && !view(frame->args, 3, &mask)) return kUnexpected;
    if constexpr (where == On::gpu) {
        return on_stream(frame, [&](void* stream) {
            return zoo::gpu::attention(q, k, v, masked ? &mask : nullptr, causal, scale, out, stream);
        });
    } else {
        Pool pool(frame);
        return zoo_attention_views(&q, &k, &v, masked ? &mask : nullptr, causal, scale, &out);
    }
}

// gated(x, y; op) -> out
template <On where>
const char* gated(Frame* frame) {
    int32_t op = 0;
    zoo_view x, y, out;
    if (!attribute(frame, "op", &op) || !view(frame->args, 0, &x) || !view(frame->args, 1, &y) || !view(frame->results, 0, &out))
        return kUnexpected;
    void* to = const_cast<void*>(out.data);
    if constexpr (where == On::gpu) {
        return on_stream(frame, [&](void* stream) { return zoo::gpu::gated(x, y, op, to, stream); });
    } else {
        Pool pool(frame);
        return zoo_gated_views(&x, &y, op, (float*)to);
    }
}

void* call(Frame* frame, const char* (*kernel)(Frame*)) {
    for (Extension* extension = frame->extension; extension; extension = extension->next) {
        if (extension->type != kMetadata) continue;
        Metadata* metadata = ((MetadataExtension*)extension)->metadata;
        metadata->version.major = 0;
        metadata->version.minor = 1;
        metadata->traits = 0;
        return nullptr;
    }
    const char* error = frame->struct_size < sizeof(Frame) || frame->api->struct_size < sizeof(Api)
                            ? "this jaxlib's foreign function interface is older than 0.1"
                            : kernel(frame);
    if (!error) return nullptr;
    ErrorArgs args{sizeof args, nullptr, error, kInvalidArgument};
    return frame->api->create_error(&args);
}

}  // namespace

extern "C" {
ZOO_API void* zoo_jax_norm(Frame* frame) { return call(frame, norm<On::cpu>); }
ZOO_API void* zoo_jax_attention(Frame* frame) { return call(frame, attention<On::cpu>); }
ZOO_API void* zoo_jax_gated(Frame* frame) { return call(frame, gated<On::cpu>); }

// The same for arrays on NVIDIA GPUs, once our libzoo_cuda at `kernels` was found: NULL, or what is missing.
ZOO_API const char* zoo_jax_use_gpu(const char* kernels, int32_t on_host) {
    without_stream = on_host;
    return zoo::gpu::find(kernels);
}
ZOO_API void* zoo_jax_norm_gpu(Frame* frame) { return call(frame, norm<On::gpu>); }
ZOO_API void* zoo_jax_attention_gpu(Frame* frame) { return call(frame, attention<On::gpu>); }
ZOO_API void* zoo_jax_gated_gpu(Frame* frame) { return call(frame, gated<On::gpu>); }
}
