// bfloat16 on the CPU, for tests: rounded to nearest, ties to even.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

struct __nv_bfloat16 {
    uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 x) {
    const uint32_t wide = (uint32_t)x.bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

inline __nv_bfloat16 __float2bfloat16(float x) {
    if (std::isnan(x)) return {0x7fff};
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return {(uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
