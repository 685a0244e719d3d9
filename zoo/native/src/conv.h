// Convolution and pooling of [N, C, H, W]. A convolution is a product: weights on the left, on the right panels of NR output
// pixels gathered from the input. With the channels last: last.h.
#pragma once

#include "last.h"

namespace zoo::ZOO_ISA {

constexpr int64_t kTaps = 1024;  // taps gathered at once

struct Conv {
    const zoo_conv_args* args;
    int64_t pixels, panels, taps;
    bool failed;
};

// Pixels of a panel that lie side by side in one row of the output.
struct Run {
    int64_t at, oh, ow, length;
};

// One tap of a run of pixels: numbers of the input's row `step` apart, 0 beyond its ends.
ZOO_INLINE void gather_run(const float* row, int64_t width, int64_t iw, int64_t step, int64_t length, float* out) {
    if (step == 1 && iw >= 0 && iw + length <= width) {
        if (length == NR)
            for (int j = 0; j < NV; ++j) store(out + j * W, load(row + iw + j * W));
        else
            for (int64_t j = 0; j < length; ++j) out[j] = row[iw + j];
        return;
    }
    for (int64_t j = 0; j < length; ++j, iw += step) out[j] = iw >= 0 && iw < width ? row[iw] : 0;
}

// [count][NR]: taps from tap0 on (over channels of a group, kernel rows, kernel columns) of the pixels from pixel0 on.
static void gather(const zoo_conv_args& x, const float* image, int64_t tap0, int64_t count, int64_t pixel0, int64_t n, float* out) {
    const int64_t KH = x.kernel[0], KW = x.kernel[1], OW = x.out_size[1], area = x.height * x.width;
    if (KH == 1 && KW == 1 && x.stride[0] == 1 && x.stride[1] == 1 && x.pad_before[0] == 0 && x.pad_before[1] == 0 &&
        x.out_size[0] * OW == area) {
        pack_panel(image + tap0 * area + pixel0, area, 1, n, count, out);
        return;
    }
    Run runs[NR];
    int64_t many = 0;
    for (int64_t p = 0; p < n; p += runs[many++].length) {
        const int64_t oh = (pixel0 + p) / OW, ow = (pixel0 + p) % OW;
        runs[many] = {p, oh * x.stride[0] - x.pad_before[0], ow * x.stride[1] - x.pad_before[1], least(n - p, OW - ow)};
    }
    int64_t kw = tap0 % KW, kh = tap0 / KW % KH;
    const float* plane = image + tap0 / (KW * KH) * area;
    for (int64_t t = 0; t < count; ++t, out += NR) {
        for (int64_t r = 0; r < many; ++r) {
            const int64_t ih = runs[r].oh + kh * x.dilation[0], length = runs[r].length;
            float* to = out + runs[r].at;
            if (ih < 0 || ih >= x.height)
                for (int64_t j = 0; j < length; ++j) to[j] = 0;
            else
                gather_run(plane + ih * x.width, x.width, runs[r].ow + kw * x.dilation[1], x.stride[1], length, to);
        }
        for (int64_t p = n; p < NR; ++p) out[p] = 0;
        if (++kw == KW) {
            kw = 0;
            if (++kh == KH) kh = 0, plane += area;
        }
    }
}

static void conv_panel(void* context, int64_t task) {
    Conv& job = *(Conv*)context;
    const zoo_conv_args& x = *job.args;
    int64_t panel = task % job.panels, group = task / job.panels % x.groups, image = task / (job.panels * x.groups);
    const int64_t M = x.out_channels / x.groups, C = x.channels / x.groups, K = job.taps, mr = tile_rows(M);
    const int64_t pixel0 = panel * NR, n = least(NR, job.pixels - pixel0);
    float* columns = scratch(kConv, (size_t)((least(kTaps, K) + M) * NR));
    if (!columns) {
        __atomic_store_n(&job.failed, true, __ATOMIC_RELAXED);
        return;
    }
    float* buffer = columns + least(kTaps, K) * NR;
    const float* in = x.x + (image * x.channels + group * C) * x.height * x.width;
    const float* weight = x.weight->data + group * M * K;
    const int64_t channel0 = image * x.out_channels + group * M;
    Finish f{.row_bias = x.bias ? x.bias + group * M : nullptr,
             .residual = x.residual ? x.residual + channel0 * job.pixels : nullptr,
             .ldr = job.pixels,
             .c = x.out + channel0 * job.pixels,
             .ldc = job.pixels,
             .activation = x.activation,
             .residual_first = true};
    for (int64_t t = 0; t < K; t += kTaps) {
        int64_t count = least(kTaps, K - t);
        gather(x, in, t, count, pixel0, n, columns);
        for (int64_t r = 0; r < M; r += mr) {
            int64_t rows = least(mr, M - r);
            product(weight + r * K + t * rows, columns, rows, count, buffer + r * NR, t == 0);
        }
    }
    finish(buffer, M, n, 0, pixel0, f);
}

static int conv(const zoo_conv_args* x) {
    if (x->weight->layout != ZOO_PLANES) return conv_last(x, x->weight->layout == ZOO_WINOGRAD);
    Conv job{x, x->out_size[0] * x->out_size[1], 0, x->channels / x->groups * x->kernel[0] * x->kernel[1], false};
    if (x->batch <= 0 || x->out_channels <= 0 || job.pixels <= 0) return ZOO_OK;
    job.panels = ceil_div(job.pixels, NR);
    parallel(x->batch * x->groups * job.panels, conv_panel, &job);
    return job.failed ? ZOO_OUT_OF_MEMORY : ZOO_OK;
}

static zoo_packed* pack_conv(const float* weight, int64_t groups, int64_t m, int64_t channels, int64_t taps, int32_t layout) {
    const int64_t k = channels * taps, panels = ceil_div(m, NR), depth = layout == ZOO_WINOGRAD ? kSpectrum * channels : k;
    zoo_packed* packed = new_packed(groups, m, 0, k, layout == ZOO_PLANES ? groups * m * k : groups * panels * depth * NR, nullptr, layout);
    if (!packed) return nullptr;
    if (layout != ZOO_PLANES) {
        ConvPacking job{weight, m, channels, taps, panels, packed->data};
        parallel(groups * panels, layout == ZOO_LAST ? pack_taps : pack_spectrum, &job);
        return packed;
    }
    const int64_t mr = tile_rows(m);
    for (int64_t g = 0; g < groups; ++g)
        for (int64_t r = 0; r < m; r += mr) {
            int64_t at = (g * m + r) * k;
            pack_tile(weight + at, k, 1, least(mr, m - r), k, packed->data + at);
        }
    return packed;
}

static void depthwise_plane(void* context, int64_t plane) {
    const zoo_depthwise_args& x = *(const zoo_depthwise_args*)context;
    const int64_t channel = plane % x.channels, OH = x.out_size[0], OW = x.out_size[1];
    const float* in = x.x + plane * x.height * x.width;
    const float* weight = x.weight + channel * x.kernel[0] * x.kernel[1];
    float* out = x.out + plane * OH * OW;
    const float bias = x.bias ? x.bias[channel] : 0;
    for (int64_t oh = 0; oh < OH; ++oh, out += OW) {
        for (int64_t ow = 0; ow < OW; ++ow) out[ow] = bias;
        for (int64_t kh = 0; kh < x.kernel[0]; ++kh) {
            const int64_t ih = oh * x.stride[0] - x.pad_before[0] + kh * x.dilation[0];
            if (ih < 0 || ih >= x.height) continue;
            const float* row = in + ih * x.width;
            for (int64_t kw = 0; kw < x.kernel[1]; ++kw) {
                const float w = weight[kh * x.kernel[1] + kw];
                const int64_t shift = kw * x.dilation[1] - x.pad_before[1], step = x.stride[1];
                // the outputs whose column lies within the input
                int64_t from = shift >= 0 ? 0 : ceil_div(-shift, step);
                int64_t to = x.width - 1 - shift < 0 ? 0 : least(OW, (x.width - 1 - shift) / step + 1);
                if (step == 1) {
                    int64_t ow = from;
                    for (; ow + W <= to; ow += W) store(out + ow, load(out + ow) + w * load(row + shift + ow));
                    for (; ow < to; ++ow) out[ow] += w * row[shift + ow];
                } else {
                    for (int64_t ow = from; ow < to; ++ow) out[ow] += w * row[shift + ow * step];
                }
            }
        }
        if (x.activation != ZOO_NONE)
            for (int64_t ow = 0; ow < OW; ow += W) write(out + ow, activate(read(out + ow, OW - ow), x.activation), OW - ow);
    }
}

static int depthwise(const zoo_depthwise_args* x) {
    if (x->last) return depthwise_last(x);
    parallel(x->batch * x->channels, depthwise_plane, (void*)x);
    return ZOO_OK;
}

static void pool_plane(void* context, int64_t plane) {
    const zoo_pool_args& x = *(const zoo_pool_args*)context;
    const int64_t OH = x.out_size[0], OW = x.out_size[1];
    const float* in = x.x + plane * x.height * x.width;
    float* out = x.out + plane * OH * OW;
    for (int64_t oh = 0; oh < OH; ++oh) {
        const int64_t h0 = oh * x.stride[0] - x.pad_before[0];
        for (int64_t ow = 0; ow < OW; ++ow) {
            const int64_t w0 = ow * x.stride[1] - x.pad_before[1];
            const int64_t from = w0 < 0 ? 0 : w0, to = least(x.width, w0 + x.kernel[1]);
            float most = -__builtin_inff(), total = 0;
            for (int64_t ih = h0 < 0 ? 0 : h0; ih < least(x.height, h0 + x.kernel[0]); ++ih)
                for (int64_t iw = from; iw < to; ++iw) {
                    float v = in[ih * x.width + iw];
                    most = v > most || v != v ? v : most;  // NaN wins, as in torch
                    total += v;
                }
            *out++ = x.sum ? total : most;
        }
    }
}

static int pool(const zoo_pool_args* x) {
    if (x->last) return pool_last(x);
    parallel(x->batch * x->channels, pool_plane, (void*)x);
    return ZOO_OK;
}

}  // namespace zoo::ZOO_ISA
