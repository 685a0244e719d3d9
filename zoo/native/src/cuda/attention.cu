// Attention in bfloat16 without the matrix of scores: blocks of keys with a running maximum and sum in float32
// (https://arxiv.org/abs/2205.14135), products on the tensor cores. A block of threads has 64 queries of a head, each of
// its four warps 16 of them; a block of keys is 64. D is the width of a head, padded with zeros to W.
#include <mma.h>

#include "common.cuh"

namespace zoo::cuda {
namespace {

using namespace nvcuda;

constexpr int kQueries = 64, kKeys = 64, kWarps = 4, kRows = 16;
static_assert(kQueries == kWarps * kRows);

// In shared memory. Rows are padded against bank conflicts; every tile that a fragment is loaded from begins at a
// multiple of 32 bytes, as wmma wants it.
template <int W>
struct Shared {
    static constexpr int half_row = W + 16, score_row = kKeys + 8, share_row = kKeys + 16, out_row = W + 8;
    bf16 q[kQueries * half_row], k[kKeys * half_row], v[kKeys * half_row];
    float scores[kQueries * score_row];
    bf16 shares[kQueries * share_row];
    float out[kQueries * out_row];
};

// 64 rows of [.., D] with `stride` between them; zeros beyond `rows` and D.
template <int W>
__device__ void load(bf16* to, const bf16* from, int64_t stride, int64_t rows, int64_t D) {
    for (int i = threadIdx.x; i < 64 * W; i += blockDim.x) {
        const int r = i / W, c = i % W;
        to[r * Shared<W>::half_row + c] = r < rows && c < D ? from[r * stride + c] : __float2bfloat16(0.0f);
    }
}

template <int W>
__global__ void __launch_bounds__(kWarps * 32) attend(zoo_attention_args a, zoo_mask mask) {
    auto& x = *(Shared<W>*)shared_memory();
    using Space = Shared<W>;
    const int64_t b = blockIdx.z, h = blockIdx.y, g = h / a.kv_group, t0 = (int64_t)blockIdx.x * kQueries;
    const int64_t D = a.width;
    const bf16* q = (const bf16*)a.q + b * a.q_stride[0] + h * a.q_stride[1] + t0 * a.q_stride[2];
    const bf16* k = (const bf16*)a.k + b * a.k_stride[0] + g * a.k_stride[1];
    const bf16* v = (const bf16*)a.v + b * a.v_stride[0] + g * a.v_stride[1];
    const float* added = mask.data ? mask.data + b * mask.stride[0] + h * mask.stride[1] : nullptr;

    load<W>(x.q, q, a.q_stride[2], a.queries - t0, D);
    for (int i = threadIdx.x; i < kQueries * Space::out_row; i += blockDim.x) x.out[i] = 0;

    // two neighbouring lanes have a row, each half of its columns
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = warp * kRows + lane / 2, side = lane % 2;
    const int64_t t = t0 + row;
    float top = -INFINITY, sum = 0;

    const int64_t seen = t0 + kQueries;  // a causal block sees no key beyond its last query
    const int64_t keys = mask.causal && seen < a.keys ? seen : a.keys;
    for (int64_t s0 = 0; s0 < keys; s0 += kKeys) {
        __syncthreads();
        load<W>(x.k, k + s0 * a.k_stride[2], a.k_stride[2], a.keys - s0, D);
        load<W>(x.v, v + s0 * a.v_stride[2], a.v_stride[2], a.keys - s0, D);
        __syncthreads();

        for (int n = 0; n < kKeys / 16; ++n) {
            wmma::fragment<wmma::accumulator, 16, 16, 16, float> scores;
            wmma::fill_fragment(scores, 0.0f);
            for (int d = 0; d < W; d += 16) {
                wmma::fragment<wmma::matrix_a, 16, 16, 16, bf16, wmma::row_major> left;
                wmma::fragment<wmma::matrix_b, 16, 16, 16, bf16, wmma::col_major> right;
                wmma::load_matrix_sync(left, x.q + warp * kRows * Space::half_row + d, Space::half_row);
                wmma::load_matrix_sync(right, x.k + n * 16 * Space::half_row + d, Space::half_row);
                wmma::mma_sync(scores, left, right, scores);
            }
            float* to = x.scores + warp * kRows * Space::score_row + n * 16;
            wmma::store_matrix_sync(to, scores, Space::score_row, wmma::mem_row_major);
        }
        __syncwarp();

        float* scores = x.scores + row * Space::score_row;
        float most = top;
        for (int j = side; j < kKeys; j += 2) {
            const int64_t s = s0 + j;
            float score = scores[j] * a.scale;
            if (s >= a.keys || (mask.causal && s > t))
                score = -INFINITY;
            else if (added && t < a.queries)
                score += added[t * mask.stride[2] + s * mask.stride[3]];
            scores[j] = score;
            most = fmaxf(most, score);
        }
        most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
        const float less = most == -INFINITY ? 0 : most;  // no key so far: exp(-inf - 0) is 0, not NaN
        const float shrink = expf(top - less);
        top = most;
        float own = 0;
        for (int j = side; j < kKeys; j += 2) {
            const bf16 share = __float2bfloat16(expf(scores[j] - less));
            x.shares[row * Space::share_row + j] = share;
            own += __bfloat162float(share);
        }
        sum = sum * shrink + own + __shfl_xor_sync(~0u, own, 1);
        for (int c = side; c < W; c += 2) x.out[row * Space::out_row + c] *= shrink;
        __syncwarp();

        for (int d = 0; d < W; d += 16) {
            wmma::fragment<wmma::accumulator, 16, 16, 16, float> total;
            float* to = x.out + warp * kRows * Space::out_row + d;
            wmma::load_matrix_sync(total, to, Space::out_row, wmma::mem_row_major);
            for (int n = 0; n < kKeys; n += 16) {
                wmma::fragment<wmma::matrix_a, 16, 16, 16, bf16, wmma::row_major> left;
                wmma::fragment<wmma::matrix_b, 16, 16, 16, bf16, wmma::row_major> right;
                wmma::load_matrix_sync(left, x.shares + warp * kRows * Space::share_row + n, Space::share_row);
                wmma::load_matrix_sync(right, x.v + n * Space::half_row + d, Space::half_row);
                wmma::mma_sync(total, left, right, total);
            }
            wmma::store_matrix_sync(to, total, Space::out_row, wmma::mem_row_major);
        }
        __syncwarp();
    }
    if (t >= a.queries) return;
    const float share = sum == 0 ? 0 : 1 / sum;
    bf16* out = (bf16*)a.out + b * a.out_stride[0] + h * a.out_stride[1] + t * a.out_stride[2];
    for (int64_t c = side; c < D; c += 2) out[c] = __float2bfloat16(x.out[row * Space::out_row + c] * share);
}

template <int W>
int attend_on(const zoo_attention_args& a, const zoo_mask& mask, void* stream) {
    const dim3 grid((unsigned)((a.queries + kQueries - 1) / kQueries), (unsigned)a.heads, (unsigned)a.batch);
    const int bytes = (int)sizeof(Shared<W>);
    if (cudaFuncSetAttribute(attend<W>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes) != cudaSuccess)
        return ZOO_DEVICE_ERROR;
    return launch(attend<W>, grid, kWarps * 32, bytes, stream, a, mask);
}

}  // namespace
}  // namespace zoo::cuda

using namespace zoo::cuda;

extern "C" int zoo_cuda_attention(const zoo_attention_args* a, void* stream) {
    if (a->batch < 0 || a->heads < 0 || a->queries < 0 || a->keys < 0 || a->width < 1 || a->width > 128) return ZOO_BAD_ARGUMENT;
    if (a->offsets || a->value_width != a->width || a->kv_group < 1 || a->heads % a->kv_group) return ZOO_BAD_ARGUMENT;
    if (a->heads > 65535 || a->batch > 65535 || a->queries / kQueries >= kGrid) return ZOO_BAD_ARGUMENT;
    if (!a->batch || !a->heads || !a->queries) return ZOO_OK;
    const zoo_mask mask = a->mask ? *a->mask : zoo_mask{};
    if (a->width <= 32) return attend_on<32>(*a, mask, stream);
    if (a->width <= 64) return attend_on<64>(*a, mask, stream);
    return attend_on<128>(*a, mask, stream);
}
