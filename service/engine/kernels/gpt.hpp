// One step of a GPT of the Qwen3 layout: all tokens of the step, all layers, one call.
#pragma once

#include "attention.hpp"
#include "linear.hpp"

#if defined(_OPENMP)
#include <omp.h>
#else
static int omp_get_thread_num() { return 0; }
#endif

extern "C" {

// Mirrored in structures.py (layout.hpp).
struct GPTLayer {
    const float *input_norm, *q_norm, *k_norm, *mlp_norm;
    Linear qkv, o_proj, gate_up, down_proj;
    Lane *keys, *values;  // [pages][G] pages of attention.hpp
};
struct GPTModel {
    int64_t n_layer, C, H, G, D, F, max_context;  // the last rounded up to whole pages
    float norm_eps;
    const void* embedding;  // [V][C], fp32 or bf16 as keys and values are
    const float *norm, *cosine, *sine;  // tables [positions][D / 2]
    Linear head;
    const GPTLayer* layers;
};
struct GPTStep {
    int64_t num_tokens, num_samples, num_threads;
    const int64_t *token_ids, *positions, *tables;  // a token's pages begin at pages[tables[token]]
    const int64_t *pages, *samples;                 // indices of the tokens whose logits are wanted
    float *x, *qkv, *attended, *gate_up, *logits;   // for each token
    Lane *q, *lanes;                                // for each token: queries; what the next product reads
    float* scales;                                  // of the lanes
    float* scores;                                  // for each thread, max_context
    Lane* weights;                                  // for each thread, max_context
};
}

namespace {

// Zhang and Sennrich 2019, equation 4: what a row is multiplied with.
INLINE float rms_scale(const float* x, int64_t n, float eps) {
    Vec squares{};
    for (int64_t i = 0; i < n; i += W) squares += load(x + i) * load(x + i);
    return 1.0f / std::sqrt(sum(squares) / static_cast<float>(n) + eps);
}

INLINE void norm_and_rotate(float* head, const float* weight, const float* cosine, const float* sine, int64_t D, float eps) {
    const float scale = rms_scale(head, D, eps);
    for (int64_t i = 0; i < D; ++i) head[i] *= scale * weight[i];
    float *a = head, *b = head + D / 2;
    for (int64_t i = 0; i < D / 2; ++i) {
        const float first = a[i] * cosine[i] - b[i] * sine[i], second = b[i] * cosine[i] + a[i] * sine[i];
        a[i] = first;
        b[i] = second;
    }
}

// A step computed in E, keys and values kept in P. Each `omp for` below belongs to the threads that entered `run`.
template <class E, class P>
struct GPTRun {
    const GPTModel& model;
    const GPTStep& step;

    // The rows that the next product reads: `row(m)(i)` gives a vector of row m from i on.
    template <class Row>
    Rows pack(int64_t M, int64_t n, Row row) const { return Rows::pack<E>(step.lanes, step.scales, M, n, row); }

    // Row m is of token `token(m)`.
    template <class Token>
    Rows normed(int64_t M, const float* weight, Token token) const {
        return pack(M, model.C, [&](int64_t m) {
            const float* x = step.x + token(m) * model.C;
            const float scale = rms_scale(x, model.C, model.norm_eps);
            return [=](int64_t i) { return load(x + i) * scale * load(weight + i); };
        });
    }

    void embed() const {
        const int64_t C = model.C;
        const auto* table = static_cast<const typename P::Scalar*>(model.embedding);
#pragma omp for schedule(static)
        for (int64_t t = 0; t < step.num_tokens; ++t)
            for (int64_t c = 0; c < C; ++c) step.x[t * C + c] = P::widen(table[step.token_ids[t] * C + c]);
    }

    // Norm and rotation of a token's queries and keys; keys and values to their page.
    void append(const GPTLayer& layer, int64_t t) const {
        const int64_t H = model.H, G = model.G, D = model.D, position = step.positions[t];
        const float *cosine = model.cosine + position * (D / 2), *sine = model.sine + position * (D / 2);
        float *q = step.qkv + t * (H + 2 * G) * D, *k = q + H * D, *v = k + G * D;
        for (int64_t h = 0; h < H + G; ++h)
            norm_and_rotate(q + h * D, h < H ? layer.q_norm : layer.k_norm, cosine, sine, D, model.norm_eps);
        for (int64_t i = 0; i < H * D; i += W) P::pack(load(q + i), 1, step.q + (t * H * D + i) / P::WIDTH);
        const bool newest = t + 1 == step.num_tokens || step.tables[t + 1] != step.tables[t];
        for (int64_t g = 0; g < G; ++g)
            past(layer, t, g).page(position).write(k + g * D, v + g * D, D, position % PAGE, newest);
    }

    Past<P> past(const GPTLayer& layer, int64_t t, int64_t g) const {
        const int64_t D = model.D, lanes = D * PAGE / P::WIDTH;
        const int64_t* pages = step.pages + step.tables[t];
        return {layer.keys + g * lanes, layer.values + g * lanes, model.G * lanes, pages, D, step.positions[t] + 1};
    }

    void attend_all(const GPTLayer& layer) const {
        const int64_t H = model.H, D = model.D, room = omp_get_thread_num() * model.max_context;
#pragma omp for schedule(static)
        for (int64_t t = 0; t < step.num_tokens; ++t) append(layer, t);
#pragma omp for schedule(dynamic, 4)
        for (int64_t i = 0; i < step.num_tokens * H; ++i)
            attend<P>(past(layer, i / H, i % H / (H / model.G)), step.q + i * D / P::WIDTH, step.scores + room,
                      step.weights + room, step.attended + i * D);
    }

    void run_layer(const GPTLayer& layer) const {
        const int64_t T = step.num_tokens, F = model.F, A = model.H * model.D;
        const auto token = [](int64_t m) { return m; };
        multiply<E>(layer.qkv, normed(T, layer.input_norm, token), step.qkv);
        attend_all(layer);
        const auto attended = [&](int64_t m) {
            return [y = step.attended + m * A](int64_t i) { return load(y + i); };
        };
        multiply<E>(layer.o_proj, pack(T, A, attended), step.x, true);
        multiply<E>(layer.gate_up, normed(T, layer.mlp_norm, token), step.gate_up);
        const auto swiglu = [&](int64_t m) {
            return [F, gate = step.gate_up + m * 2 * F](int64_t i) {
                return load(gate + i) / (1.0f + exponential(-load(gate + i))) * load(gate + F + i);
            };
        };
        multiply<E>(layer.down_proj, pack(T, F, swiglu), step.x, true);
    }

    void run() const {
#pragma omp parallel num_threads(step.num_threads)
        {
            embed();
            for (int64_t l = 0; l < model.n_layer; ++l) run_layer(model.layers[l]);
            const auto sampled = [&](int64_t m) { return step.samples[m]; };
            multiply<E>(model.head, normed(step.num_samples, model.norm, sampled), step.logits);
        }
    }
};

}  // namespace
