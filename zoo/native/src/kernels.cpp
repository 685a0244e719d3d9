// All kernels for one instruction set: compiled once for each, with ZOO_ISA as the namespace.
#include "kernels.h"

#include "attention.h"
#include "conv.h"
#include "low.h"

namespace zoo::ZOO_ISA {

extern const Kernels kernels = {
    ZOO_ISA_NAME, pack_right, pack_bfloat16, pack_int8, pack_conv, matmul, attention, norm, softmax, unary, binary, conv, depthwise, pool,
};

static zoo_packed* new_packed(int64_t groups, int64_t m, int64_t n, int64_t k, int64_t floats, Linear linear, int32_t layout) {
    size_t bytes = sizeof(float) * (size_t)floats;
    auto* packed = (zoo_packed*)allocate(sizeof(zoo_packed));
    auto* data = (float*)allocate(bytes ? bytes : 1);
    if (!packed || !data) {
        release(packed);
        release(data);
        return nullptr;
    }
    *packed = {&kernels, linear, groups, m, n, k, layout, data, bytes};
    return packed;
}

}  // namespace zoo::ZOO_ISA
