// One step of a GPT of the Qwen3 layout in fp32: all tokens of the step, all layers, one call.
//
// Every output element is summed in one fixed order that depends on nothing but the shape of the model: not on the
// number of tokens in the step, not on their order, not on the threads. So a token's logits are the same bits alone, in
// any batch, and in any chunking of its prefill.
//
// Vectors are 16 floats. The compiler makes three versions of each kernel (AVX-512, AVX2, plain) and the loader takes
// the best that the processor has.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define KERNEL __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default"), flatten))
#else
#define KERNEL
#endif
#define INLINE static inline __attribute__((always_inline))

namespace {

constexpr int64_t W = 16;  // floats of a vector, tokens of a page, columns of a panel
typedef float Vec __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef int32_t IntVec __attribute__((vector_size(4 * W), aligned(4), may_alias));

INLINE Vec load(const float* from) { return *reinterpret_cast<const Vec*>(from); }
INLINE void store(float* to, Vec x) { *reinterpret_cast<Vec*>(to) = x; }
INLINE Vec splat(float x) { return x - Vec{}; }

INLINE float sum(Vec x) {
    float total = 0;
    for (int64_t i = 0; i < W; ++i) total += x[i];
    return total;
}

// e^x to 2e-7, relative. Source: Cephes, expf: x = n ln 2 + r, a polynomial for e^r, 2^n by the exponent's bits.
INLINE Vec exponential(Vec x) {
    x = x < -87.0f ? splat(-87.0f) : x;
    x = x > 88.0f ? splat(88.0f) : x;
    const Vec scaled = x * 1.44269504088896341f;
    const IntVec n = __builtin_convertvector(scaled + (scaled < 0 ? splat(-0.5f) : splat(0.5f)), IntVec);
    const Vec whole = __builtin_convertvector(n, Vec);
    const Vec r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    Vec y = splat(1.9875691500e-4f);
    y = y * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.0f;
    const IntVec power = (n + 127) << 23;
    Vec two_to_n;
    std::memcpy(&two_to_n, &power, sizeof power);
    return y * two_to_n;
}

// y[m][n] (+)= sum over k of x[m][k] w[k][n], for R rows and P panels of W columns, k ascending.
template <int R, int P>
INLINE void multiply(const float* x, const float* packed, float* y, int64_t K, int64_t N, bool add) {
    Vec total[R][P] = {};
    for (int64_t k = 0; k < K; ++k) {
        Vec w[P];
        for (int p = 0; p < P; ++p) w[p] = load(packed + (p * K + k) * W);
#pragma GCC unroll 16
        for (int m = 0; m < R; ++m)
            for (int p = 0; p < P; ++p) total[m][p] += x[m * K + k] * w[p];
    }
    for (int m = 0; m < R; ++m)
        for (int p = 0; p < P; ++p) {
            float* to = y + m * N + p * W;
            store(to, add ? load(to) + total[m][p] : total[m][p]);
        }
}

template <int P>
INLINE void multiply_rows(const float* x, const float* packed, float* y, int64_t M, int64_t K, int64_t N, bool add) {
    int64_t m = 0;
    for (; m + 8 <= M; m += 8) multiply<8, P>(x + m * K, packed, y + m * N, K, N, add);
    for (; m + 4 <= M; m += 4) multiply<4, P>(x + m * K, packed, y + m * N, K, N, add);
    for (; m < M; ++m) multiply<1, P>(x + m * K, packed, y + m * N, K, N, add);
}

// Weights stand as panels [N / W][K][W]; panels first … last - 1 are computed for all M rows.
KERNEL void linear_panels(const float* x, const float* packed, float* y, int64_t M, int64_t K, int64_t N, bool add,
                          int64_t first, int64_t last) {
    int64_t p = first;
    for (; p + 2 <= last; p += 2) multiply_rows<2>(x, packed + p * K * W, y + p * W, M, K, N, add);
    if (p < last) multiply_rows<1>(x, packed + p * K * W, y + p * W, M, K, N, add);
}

// Zhang and Sennrich 2019, equation 4. x and y may be the same.
INLINE void rms_norm(const float* x, const float* weight, float* y, int64_t n, float eps) {
    Vec squares{};
    for (int64_t i = 0; i < n; i += W) squares += load(x + i) * load(x + i);
    const float scale = 1.0f / std::sqrt(sum(squares) / static_cast<float>(n) + eps);
    for (int64_t i = 0; i < n; i += W) store(y + i, load(x + i) * scale * load(weight + i));
}

KERNEL void norm_rows(const float* x, const float* weight, float* y, int64_t first, int64_t last, int64_t C, float eps) {
    for (int64_t t = first; t < last; ++t) rms_norm(x + t * C, weight, y + t * C, C, eps);
}

KERNEL void swiglu_rows(const float* gate_up, float* y, int64_t first, int64_t last, int64_t F) {
    for (int64_t t = first; t < last; ++t) {
        const float *gate = gate_up + t * 2 * F, *up = gate + F;
        for (int64_t i = 0; i < F; i += W) {
            const Vec g = load(gate + i);
            store(y + t * F + i, g / (1.0f + exponential(-g)) * load(up + i));
        }
    }
}

INLINE void rotate(float* head, const float* cosine, const float* sine, int64_t D) {
    float *a = head, *b = head + D / 2;
    for (int64_t i = 0; i < D / 2; ++i) {
        const float first = a[i] * cosine[i] - b[i] * sine[i], second = b[i] * cosine[i] + a[i] * sine[i];
        a[i] = first;
        b[i] = second;
    }
}

}  // namespace

extern "C" {

// Mirrored field by field in library.py.
struct Layer {
    const float *input_norm, *qkv, *q_norm, *k_norm, *o_proj, *mlp_norm, *gate_up, *down_proj;
    float *keys, *values;  // [pages][G][D][W] and [pages][G][W][D]
};
struct Model {
    int64_t n_layer, C, H, G, D, F, V, max_context;  // the last two rounded up to whole vectors
    float norm_eps;
    const float *embedding, *norm, *head, *cosine, *sine;  // tables [positions][D / 2]
    const Layer* layers;
};
struct Step {
    int64_t num_tokens, num_samples, num_threads;
    const int64_t *token_ids, *positions, *tables;  // a token's pages begin at pages[tables[token]]
    const int64_t *pages, *samples;                 // indices of the tokens whose logits are wanted
    float *x, *normed, *qkv, *attended, *hidden, *gate_up, *scores, *logits;
};
}

namespace {

// Norm and rotation of a token's queries and keys; keys and values to their page.
KERNEL void append(const Model& model, const Layer& layer, const Step& step, int64_t first, int64_t last) {
    const int64_t H = model.H, G = model.G, D = model.D;
    for (int64_t t = first; t < last; ++t) {
        const int64_t position = step.positions[t], slot = position % W;
        const int64_t page = step.pages[step.tables[t] + position / W];
        const float *cosine = model.cosine + position * (D / 2), *sine = model.sine + position * (D / 2);
        float* q = step.qkv + t * (H + 2 * G) * D;
        for (int64_t h = 0; h < H + G; ++h) {
            rms_norm(q + h * D, h < H ? layer.q_norm : layer.k_norm, q + h * D, D, model.norm_eps);
            rotate(q + h * D, cosine, sine, D);
        }
        const float *k = q + H * D, *v = k + G * D;
        for (int64_t g = 0; g < G; ++g) {
            float* keys = layer.keys + (page * G + g) * D * W + slot;
            for (int64_t d = 0; d < D; ++d) keys[d * W] = k[g * D + d];
            std::memcpy(layer.values + ((page * G + g) * W + slot) * D, v + g * D, D * sizeof(float));
        }
    }
}

// y = share × sum over the past of weights[i] × values[i], for N vectors of a head, i ascending.
template <int N>
INLINE void mix(const float* values, const int64_t* pages, int64_t page_size, int64_t D, const float* weights,
                int64_t length, float share, float* y) {
    Vec mixed[N] = {};
    for (int64_t at = 0; at < length; at += W) {
        const float* page = values + pages[at / W] * page_size;
        for (int64_t i = 0; i < std::min(W, length - at); ++i)
            for (int n = 0; n < N; ++n) mixed[n] += weights[at + i] * load(page + i * D + n * W);
    }
    for (int n = 0; n < N; ++n) store(y + n * W, mixed[n] * share);
}

// One query of one token over its past, itself included. The pages' last slots may be empty: their weight is 0, and
// what stands in them is not read.
KERNEL void attend(const Model& model, const Layer& layer, const Step& step, int64_t t, int64_t h, float* scores) {
    const int64_t H = model.H, G = model.G, D = model.D, g = h / (H / G), length = step.positions[t] + 1;
    const int64_t* pages = step.pages + step.tables[t];
    const float* q = step.qkv + (t * (H + 2 * G) + h) * D;
    const float scale = 1.0f / std::sqrt(static_cast<float>(D));
    float highest = -INFINITY;
    for (int64_t at = 0; at < length; at += W) {
        const float* keys = layer.keys + (pages[at / W] * G + g) * D * W;
        Vec dots[4] = {};  // four sums side by side: each waits for its own last addition only
        for (int64_t d = 0; d < D; d += 4)
            for (int64_t i = 0; i < 4; ++i) dots[i] += q[d + i] * load(keys + (d + i) * W);
        store(scores + at, ((dots[0] + dots[1]) + (dots[2] + dots[3])) * scale);
        for (int64_t i = at; i < std::min(at + W, length); ++i) highest = std::max(highest, scores[i]);
    }
    Vec total{};
    for (int64_t at = 0; at < length; at += W) {
        for (int64_t i = std::max(at, length); i < at + W; ++i) scores[i] = -INFINITY;
        Vec weights = exponential(load(scores + at) - highest);
        for (int64_t i = std::max(at, length); i < at + W; ++i) weights[i - at] = 0;
        total += weights;
        store(scores + at, weights);
    }
    float* y = step.attended + (t * H + h) * D;
    const float share = 1.0f / sum(total);
    int64_t d = 0;
    for (; d + 4 * W <= D; d += 4 * W) mix<4>(layer.values + g * D * W + d, pages, G * D * W, D, scores, length, share, y + d);
    for (; d < D; d += W) mix<1>(layer.values + g * D * W + d, pages, G * D * W, D, scores, length, share, y + d);
}

constexpr int64_t WORTH_A_THREAD = 1 << 21;  // multiplications that outweigh waking the other threads

void linear(const Step& step, const float* x, const float* packed, float* y, int64_t M, int64_t K, int64_t N,
            bool add = false) {
    const int64_t panels = N / W, chunk = 4;
#pragma omp parallel for schedule(static) num_threads(step.num_threads) if (M * K * N > WORTH_A_THREAD)
    for (int64_t p = 0; p < panels; p += chunk)
        linear_panels(x, packed, y, M, K, N, add, p, std::min(p + chunk, panels));
}

void run_layer(const Model& model, const Layer& layer, const Step& step) {
    const int64_t T = step.num_tokens, C = model.C, H = model.H, G = model.G, D = model.D, F = model.F;
    norm_rows(step.x, layer.input_norm, step.normed, 0, T, C, model.norm_eps);
    linear(step, step.normed, layer.qkv, step.qkv, T, C, (H + 2 * G) * D);
    append(model, layer, step, 0, T);
#pragma omp parallel for schedule(dynamic, 4) num_threads(step.num_threads) if (T >= 8)
    for (int64_t i = 0; i < T * H; ++i) attend(model, layer, step, i / H, i % H, step.scores + i * model.max_context);
    linear(step, step.attended, layer.o_proj, step.x, T, H * D, C, true);
    norm_rows(step.x, layer.mlp_norm, step.normed, 0, T, C, model.norm_eps);
    linear(step, step.normed, layer.gate_up, step.gate_up, T, C, 2 * F);
    swiglu_rows(step.gate_up, step.hidden, 0, T, F);
    linear(step, step.hidden, layer.down_proj, step.x, T, F, C, true);
}

}  // namespace

extern "C" void minigpt_step(const Model* model, const Step* step) {
    const int64_t C = model->C;
    for (int64_t t = 0; t < step->num_tokens; ++t)
        std::memcpy(step->x + t * C, model->embedding + step->token_ids[t] * C, C * sizeof(float));
    for (int64_t l = 0; l < model->n_layer; ++l) run_layer(*model, model->layers[l], *step);
    for (int64_t s = 0; s < step->num_samples; ++s)
        norm_rows(step->x + step->samples[s] * C, model->norm, step->normed + s * C, 0, 1, C, model->norm_eps);
    linear(*step, step->normed, model->head, step->logits, step->num_samples, C, model->V);
}
