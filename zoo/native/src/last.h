// Convolution and pooling with the channels last: [N, H, W, C]. A convolution is a product with pixels on the left and
// output channels on the right, so that any number of pixels goes. Blocks of pixels are gathered into tiles that stay in
// the cache, each [k / W][mr][W]: what lies side by side in the image stays so. Windows of 3 x 3 that move by one may be
// computed in Winograd's way, F(2 x 2, 3 x 3): a product of the channels for each of the 16 numbers of a transformed
// window, in place of 36 for its four pixels.
#pragma once

#include "rows.h"

namespace zoo::ZOO_ISA {

struct Gathered : Float {
    static constexpr int64_t kRun = W;
};

constexpr int64_t kSpectrum = 16;         // numbers of a transformed window
constexpr int64_t kBlock = 128 * 1024;    // numbers gathered at once
constexpr int64_t kWindows = kBlock / 2;  // the same of windows, whose sums take more room
constexpr int64_t kWindowRun = KC / 2;    // channels of a window summed in one run: the errors of 16 sums come together

ZOO_INLINE int64_t whole(int64_t k) { return ceil_div(k, W) * W; }

struct Last {
    const zoo_conv_args* args;
    bool winograd;
    int64_t M, C, panels;              // outputs and channels of a group
    int64_t k, depth;                  // of a product, and how many of those
    int64_t height, width, units;      // of the output, in pixels or in windows that give four; how many in all images
    int64_t mr, tiles, blocks, parts;  // tiles of a block, blocks, tasks that share a block's panels
    bool failed;
};

// A tile: `rows` of all images' pixels from `pixel` on, by kernel rows, kernel columns and the channels of a group. `lines`
// is room for as many rows, from which channels that do not fill vectors go to their places.
static void gather_pixels(const zoo_conv_args& x, const float* image, int64_t C, int64_t pixel, int64_t rows, float* lines,
                          float* out) {
    const int64_t KW = x.kernel[1], OH = x.out_size[0], OW = x.out_size[1], K = x.kernel[0] * KW * C;
    const int64_t at_once = x.dilation[1] == 1 && x.groups == 1 ? KW : 1;  // columns that lie side by side
    const bool even = C % W == 0;
    const int64_t step = even ? rows * W : W;
    float* to;
    auto put = [&](const float* from, int64_t n) {
        for (; n >= W; n -= W, from += W, to += step) store(to, load(from));
        if (n > 0) store(to, load_some(from, n)), to += n;
    };
    auto skip = [&](int64_t n) {
        for (; n >= W; n -= W, to += step) store(to, V{});
        if (n > 0) store(to, V{}), to += n;
    };
    int64_t oh = pixel / OW % OH, ow = pixel % OW;
    image += pixel / (OW * OH) * x.height * x.width * x.channels;
    for (int64_t i = 0; i < rows; ++i) {
        to = even ? out + i * W : lines + i * (whole(K) + W);
        for (int64_t kh = 0; kh < x.kernel[0]; ++kh) {
            const int64_t ih = oh * x.stride[0] - x.pad_before[0] + kh * x.dilation[0];
            for (int64_t kw = 0; kw < KW; kw += at_once) {
                const int64_t iw = ow * x.stride[1] - x.pad_before[1] + kw * x.dilation[1];
                // those of the columns that lie within the image
                int64_t begin = iw < 0 ? least(-iw, at_once) : 0, end = least(at_once, x.width - iw);
                if (ih < 0 || ih >= x.height || end < begin) begin = end = 0;
                skip(begin * C);
                if (begin < end) put(image + (ih * x.width + iw + begin) * x.channels, (end - begin) * C);
                skip((at_once - end) * C);
            }
        }
        if (++ow < OW) continue;
        ow = 0;
        if (++oh == OH) oh = 0, image += x.height * x.width * x.channels;
    }
    if (even) return;
    for (int64_t k = 0; k < K; k += W)
        for (int64_t i = 0; i < rows; ++i, out += W) store(out, load(lines + i * (whole(K) + W) + k));
}

// A window of 4 x 4 at [row, column] of the image, transformed: number s of the spectrum goes to out + s * apart.
static void transform_window(const zoo_conv_args& x, const float* image, int64_t C, int64_t row, int64_t column, int64_t step,
                             int64_t apart, float* out) {
    const bool inside = row >= 0 && column >= 0 && row + 4 <= x.height && column + 4 <= x.width;
    for (int64_t c = 0; c < C; c += W, out += step) {
        V d[4][4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i)
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) {
                const int64_t ih = row + i, iw = column + j;
                const bool there = inside || (ih >= 0 && ih < x.height && iw >= 0 && iw < x.width);
                d[i][j] = there ? read(image + (ih * x.width + iw) * x.channels + c, C - c) : V{};
            }
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            const V a = d[0][j] - d[2][j], b = d[1][j] + d[2][j], e = d[2][j] - d[1][j], f = d[1][j] - d[3][j];
            d[0][j] = a, d[1][j] = b, d[2][j] = e, d[3][j] = f;
        }
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
            float* to = out + i * 4 * apart;
            store(to, d[i][0] - d[i][2]);
            store(to + apart, d[i][1] + d[i][2]);
            store(to + 2 * apart, d[i][2] - d[i][1]);
            store(to + 3 * apart, d[i][1] - d[i][3]);
        }
    }
}

static void gather_windows(const Last& job, const float* images, int64_t unit, int64_t rows, int64_t apart, float* out) {
    const zoo_conv_args& x = *job.args;
    for (int64_t i = 0; i < rows; ++i, ++unit) {
        const float* image = images + unit / (job.height * job.width) * x.height * x.width * x.channels;
        const int64_t row = unit / job.width % job.height * 2 - x.pad_before[0], column = unit % job.width * 2 - x.pad_before[1];
        transform_window(x, image, job.C, row, column, rows * W, apart, out + i * W);
    }
}

// From the sums [16][units][NR] of some windows to their pixels.
static void finish_windows(const Last& job, const float* sums, int64_t unit0, int64_t units, int64_t n, const Finish& f) {
    const int64_t apart = units * NR, OH = job.args->out_size[0], OW = job.args->out_size[1];
    for (int64_t u = 0; u < units; ++u, sums += NR) {
        const int64_t image = (unit0 + u) / (job.height * job.width);
        const int64_t oh = (unit0 + u) / job.width % job.height * 2, ow = (unit0 + u) % job.width * 2;
        for (int64_t j = 0; j < n; j += W) {
            V half[2][4];
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                const float* s = sums + i * apart + j;
                const V a = load(s), b = load(s + 4 * apart), c = load(s + 8 * apart), d = load(s + 12 * apart);
                half[0][i] = a + b + c, half[1][i] = b - c - d;
            }
            const V bias = f.column_bias ? read(f.column_bias + j, n - j) : V{};
#pragma GCC unroll 4
            for (int p = 0; p < 4; ++p) {
                const V* h = half[p / 2];
                if (oh + p / 2 >= OH || ow + p % 2 >= OW) continue;
                const int64_t pixel = (image * OH + oh + p / 2) * OW + ow + p % 2;
                V y = (p % 2 ? h[1] - h[2] - h[3] : h[0] + h[1] + h[2]) + bias;
                if (f.residual) y += read(f.residual + pixel * f.ldr + j, n - j);
                write(f.c + pixel * f.ldc + j, activate(y, f.activation), n - j);
            }
        }
    }
}

static void conv_block(void* context, int64_t task) {
    Last& job = *(Last*)context;
    const zoo_conv_args& x = *job.args;
    const int64_t part = task % job.parts, block = task / job.parts % job.blocks, group = task / (job.parts * job.blocks);
    const int64_t mr = job.mr, unit0 = block * job.tiles * mr, units = least(job.tiles * mr, job.units - unit0);
    const int64_t apart = units * whole(job.k);  // of one product's left-hand side and the next
    const int64_t lines = mr * (whole(job.k) + W);
    float* left = scratch(kConv, (size_t)(job.depth * (apart + units * NR) + lines));
    if (!left) {
        __atomic_store_n(&job.failed, true, __ATOMIC_RELAXED);
        return;
    }
    float* sums = left + job.depth * apart;
    for (int64_t u = 0; u < units; u += mr) {
        const int64_t rows = least(mr, units - u);
        if (job.winograd)
            gather_windows(job, x.x + group * job.C, unit0 + u, rows, apart, left + u * whole(job.k));
        else
            gather_pixels(x, x.x + group * job.C, job.C, unit0 + u, rows, sums + job.depth * units * NR, left + u * whole(job.k));
    }
    for (int64_t panel = job.panels * part / job.parts; panel < job.panels * (part + 1) / job.parts; ++panel) {
        const int64_t channel = group * job.M + panel * NR, n = least(NR, job.M - panel * NR);
        const float* right = x.weight->data + (group * job.panels + panel) * job.depth * job.k * NR;
        const Finish f{.column_bias = x.bias ? x.bias + channel : nullptr,
                       .residual = x.residual ? x.residual + channel : nullptr,
                       .ldr = x.out_channels,
                       .c = x.out + channel,
                       .ldc = x.out_channels,
                       .activation = x.activation,
                       .residual_first = true};
        const int64_t run = job.winograd ? kWindowRun : KC;
        const Tile* tiles = n <= W ? kTiles<Gathered, 1> : kTiles<Gathered>;
        if (job.k == 0) memset(sums, 0, sizeof(float) * (size_t)(job.depth * units * NR));
        for (int64_t s = 0; s < job.depth; ++s)
            for (int64_t k = 0; k < job.k; k += run) {
                const int64_t count = least(run, job.k - k);
                for (int64_t u = 0; u < units; u += mr) {
                    const int64_t rows = least(mr, units - u);
                    const bool done = !job.winograd && k + count == job.k;
                    float* to = sums + (s * units + u) * NR;
                    if (done) fetch_ahead(rows, unit0 + u, 0, f);
                    tiles[rows](left + s * apart + u * whole(job.k) + k * rows, right + k * NR, count, to, k == 0,
                                (const char*)(right + (k + count) * NR) + u / mr % kLines * count * 64);
                    if (done) finish(to, rows, n, unit0 + u, 0, f);
                }
                if (k + count == job.k) right += job.k * NR;
            }
        if (job.winograd)
            finish_windows(job, sums, unit0, units, n, f);
        else if (job.k == 0)
            finish(sums, units, n, unit0, 0, f);
    }
}

static int conv_last(const zoo_conv_args* x, bool winograd) {
    Last job{.args = x, .winograd = winograd, .M = x->out_channels / x->groups, .C = x->channels / x->groups};
    if (x->batch <= 0 || job.M <= 0 || x->out_size[0] <= 0 || x->out_size[1] <= 0) return ZOO_OK;
    job.panels = ceil_div(job.M, NR);
    job.depth = winograd ? kSpectrum : 1;
    job.k = winograd ? job.C : job.C * x->kernel[0] * x->kernel[1];
    job.height = winograd ? ceil_div(x->out_size[0], 2) : x->out_size[0];
    job.width = winograd ? ceil_div(x->out_size[1], 2) : x->out_size[1];
    job.units = x->batch * job.height * job.width;
    job.mr = tile_rows(job.units);
    // equal blocks
    const int64_t tiles = ceil_div(job.units, job.mr), fitting = (winograd ? kWindows : kBlock) / (job.mr * job.depth * (job.k + 1));
    job.tiles = ceil_div(tiles, ceil_div(tiles, 1 + fitting));
    job.blocks = ceil_div(tiles, job.tiles);
    const int64_t tasks = x->groups * job.blocks, workers = threads();
    job.parts = workers == 1 || tasks >= 4 * workers ? 1 : least(job.panels, ceil_div(4 * workers, tasks));
    parallel(tasks * job.parts, conv_block, &job);
    return job.failed ? ZOO_OUT_OF_MEMORY : ZOO_OK;
}

struct ConvPacking {
    const float* from;  // [groups][m][channels][taps]
    int64_t m, channels, taps, panels;
    float* to;
};

static void pack_taps(void* context, int64_t task) {
    const ConvPacking& p = *(const ConvPacking*)context;
    const int64_t col = task % p.panels * NR, row = p.channels * p.taps;
    const float* from = p.from + (task / p.panels * p.m + col) * row;
    float* to = p.to + task * row * NR;
    const int64_t cols = least(NR, p.m - col);
    if (p.taps == 1) return pack_panel(from, 1, row, cols, row, to);
    if (cols < NR) memset(to, 0, sizeof(float) * (size_t)(row * NR));
    for (int64_t c = 0; c < p.channels; ++c) transpose(from + c * p.taps, row, 1, cols, p.taps, to + c * NR, p.channels * NR);
}

// G g G^T of the kernels of 3 x 3.
static void pack_spectrum(void* context, int64_t task) {
    const ConvPacking& p = *(const ConvPacking*)context;
    const int64_t col = task % p.panels * NR, apart = p.channels * NR;
    float* to = p.to + task * kSpectrum * apart;
    auto four = [](const double* g, int64_t step, double* out) {
        out[0] = g[0], out[3] = g[2 * step];
        out[1] = (g[0] + g[step] + g[2 * step]) / 2, out[2] = (g[0] - g[step] + g[2 * step]) / 2;
    };
    memset(to, 0, sizeof(float) * (size_t)(kSpectrum * apart));
    for (int64_t j = 0; j < least(NR, p.m - col); ++j)
        for (int64_t c = 0; c < p.channels; ++c) {
            const float* from = p.from + ((task / p.panels * p.m + col + j) * p.channels + c) * 9;
            double kernel[9], columns[3][4], row[4];
            for (int i = 0; i < 9; ++i) kernel[i] = from[i];
            for (int i = 0; i < 3; ++i) four(kernel + i, 3, columns[i]);
            for (int i = 0; i < 4; ++i) {
                const double g[3] = {columns[0][i], columns[1][i], columns[2][i]};
                four(g, 1, row);
                for (int s = 0; s < 4; ++s) to[(i * 4 + s) * apart + c * NR + j] = (float)row[s];
            }
        }
}

// One row of the output.
static void depthwise_row(void* context, int64_t task) {
    const zoo_depthwise_args& x = *(const zoo_depthwise_args*)context;
    constexpr int64_t kPixels = 4;  // that share a weight once loaded
    const int64_t C = x.channels, OW = x.out_size[1], oh = task % x.out_size[0];
    const float* in = x.x + task / x.out_size[0] * x.height * x.width * C;
    const int64_t h0 = oh * x.stride[0] - x.pad_before[0], step = x.stride[1] * C;
    float* out = x.out + task * OW * C;
    for (int64_t ow = 0; ow < OW; ow += kPixels) {
        const int64_t pixels = least(kPixels, OW - ow), w0 = ow * x.stride[1] - x.pad_before[1];
        for (int64_t c = 0; c < C; c += W) {
            V sums[kPixels];
            for (V& s : sums) s = x.bias ? read(x.bias + c, C - c) : V{};
            for (int64_t kh = 0; kh < x.kernel[0]; ++kh) {
                const int64_t ih = h0 + kh * x.dilation[0];
                if (ih < 0 || ih >= x.height) continue;
                for (int64_t kw = 0; kw < x.kernel[1]; ++kw) {
                    const V weight = read(x.weight + (kh * x.kernel[1] + kw) * C + c, C - c);
                    const int64_t iw = w0 + kw * x.dilation[1];
                    const float* from = in + (ih * x.width + iw) * C + c;
                    if (pixels == kPixels && iw >= 0 && iw + (kPixels - 1) * x.stride[1] < x.width) {
#pragma GCC unroll 4
                        for (int i = 0; i < kPixels; ++i) sums[i] += weight * read(from + i * step, C - c);
                    } else {
#pragma GCC unroll 4
                        for (int i = 0; i < kPixels; ++i)
                            if (i < pixels && iw + i * x.stride[1] >= 0 && iw + i * x.stride[1] < x.width)
                                sums[i] += weight * read(from + i * step, C - c);
                    }
                }
            }
#pragma GCC unroll 4
            for (int i = 0; i < kPixels; ++i)
                if (i < pixels) write(out + (ow + i) * C + c, activate(sums[i], x.activation), C - c);
        }
    }
}

static int depthwise_last(const zoo_depthwise_args* x) {
    parallel(x->batch * x->out_size[0], depthwise_row, (void*)x);
    return ZOO_OK;
}

static void pool_row(void* context, int64_t task) {
    const zoo_pool_args& x = *(const zoo_pool_args*)context;
    const int64_t C = x.channels, oh = task % x.out_size[0], h0 = oh * x.stride[0] - x.pad_before[0];
    const float* in = x.x + task / x.out_size[0] * x.height * x.width * C;
    float* out = x.out + task * x.out_size[1] * C;
    for (int64_t ow = 0; ow < x.out_size[1]; ++ow, out += C) {
        const int64_t w0 = ow * x.stride[1] - x.pad_before[1], from = w0 < 0 ? 0 : w0, to = least(x.width, w0 + x.kernel[1]);
        for (int64_t c = 0; c < C; c += W) {
            V most = splat(-__builtin_inff()), total{};
            for (int64_t ih = h0 < 0 ? 0 : h0; ih < least(x.height, h0 + x.kernel[0]); ++ih)
                for (int64_t iw = from; iw < to; ++iw) {
                    const V v = read(in + (ih * x.width + iw) * C + c, C - c);
                    most = v > most || v != v ? v : most;  // NaN wins, as in torch
                    total += v;
                }
            write(out + c, x.sum ? total : most, C - c);
        }
    }
}

static int pool_last(const zoo_pool_args* x) {
    parallel(x->batch * x->out_size[0], pool_row, (void*)x);
    return ZOO_OK;
}

}  // namespace zoo::ZOO_ISA
