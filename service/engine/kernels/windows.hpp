// One step of the models of a fixed reach: gated causal convolutions, and a perceptron over a window of embeddings.
#pragma once

#include "activations.hpp"
#include "slots.hpp"

extern "C" {

// Mirrored in structures.py (layout.hpp). What a layer reads beside its own position: `taps` rows in all, `dilation`
// positions apart, its own the last.
struct Window {
    float* kept;  // [slots][reach][width], that of position p at p % reach
    int64_t width, taps, dilation;
};
struct ConvolutionLayer {
    const float *norm, *norm_bias;
    Window window;
    Linear convolution, projection;  // what is gated and the gates side by side
};
struct ConvolutionModel {
    int64_t n_layer, C, F, activation, gate_activation;
    const float *embedding, *norm, *norm_bias;
    Linear head;
    const ConvolutionLayer* layers;
};
struct PerceptronModel {
    int64_t n_layer, C, F, activation;
    const float* embedding;
    Window window;
    Linear output, direct, head;  // `direct` not packed: there is none
    const Linear* layers;
};
}

namespace {

// The window before each row of x (T, width), beginning with the oldest.
INLINE auto windows_of(const SlotStep& step, const Window& window, const float* x) {
    return [&step, &window, x](int64_t t) {
        const int64_t n = window.width, reach = (window.taps - 1) * window.dilation, chunk = step.chunks[t];
        const int64_t first = step.starts[chunk], position = step.positions[chunk] + t - first;
        const float* kept = window.kept + step.slots[chunk] * reach * n;
        return [=, &window](int64_t i) {
            const int64_t back = (window.taps - 1 - i / n) * window.dilation;
            const float* row = t - back >= first ? x + (t - back) * n : kept + (position - back + reach) % reach * n;
            return load(row + i % n);
        };
    };
}

// Keeps of x (T, width) what the next step's windows read.
INLINE void keep(const SlotStep& step, const Window& window, const float* x) {
    const int64_t n = window.width, reach = (window.taps - 1) * window.dilation;
#pragma omp for schedule(static)
    for (int64_t chunk = 0; chunk < step.num_chunks; ++chunk) {
        const int64_t end = end_of(step, chunk), before = step.positions[chunk] - step.starts[chunk];
        for (int64_t t = std::max(step.starts[chunk], end - reach); t < end; ++t)
            std::memcpy(window.kept + (step.slots[chunk] * reach + (before + t) % reach) * n, x + t * n, n * sizeof(float));
    }
}

// Ba et al. 2016 (arXiv 1607.06450), equation 4, of rows of x.
INLINE auto layer_norm(const float* x, const float* weight, const float* bias, int64_t n) {
    return [=](int64_t t) {
        const float* row = x + t * n;
        Vec total{}, squares{};
        for (int64_t i = 0; i < n; i += W) total += load(row + i);
        const float mean = sum(total) / static_cast<float>(n);
        for (int64_t i = 0; i < n; i += W) squares += (load(row + i) - mean) * (load(row + i) - mean);
        const float scale = 1.0f / std::sqrt(sum(squares) / static_cast<float>(n) + 1e-5f);
        return [=](int64_t i) { return (load(row + i) - mean) * scale * load(weight + i) + load(bias + i); };
    };
}

template <class E>
void run_layer(const ConvolutionModel& model, const ConvolutionLayer& layer, const SlotStep& step) {
    const int64_t T = step.num_tokens, C = model.C, F = model.F;
    const auto normed = layer_norm(step.x, layer.norm, layer.norm_bias, C);
#pragma omp for schedule(static)
    for (int64_t t = 0; t < T; ++t) {
        const auto row = normed(t);
        for (int64_t i = 0; i < C; i += W) store(step.side + t * C + i, row(i));
    }
    const auto windows = windows_of(step, layer.window, step.side);
    multiply<E>(layer.convolution, pack<E>(step, T, layer.convolution.K, windows), step.wide);
    keep(step, layer.window, step.side);
    const auto gated = [&](int64_t t) {
        return [&, from = step.wide + t * 2 * F](int64_t i) {
            return activate(model.activation, load(from + i)) * activate(model.gate_activation, load(from + F + i));
        };
    };
    multiply<E>(layer.projection, pack<E>(step, T, F, gated), step.x, true);
}

template <class E>
void run(const ConvolutionModel& model, const SlotStep& step) {
#pragma omp parallel num_threads(step.num_threads)
    {
        embed(step, model.embedding, model.C);
        for (int64_t l = 0; l < model.n_layer; ++l) run_layer<E>(model, model.layers[l], step);
        project<E>(step, model.head, layer_norm(step.x, model.norm, model.norm_bias, model.C));
    }
}

template <class E>
void run(const PerceptronModel& model, const SlotStep& step) {
    const int64_t T = step.num_tokens, F = model.F;
    const auto activated = [&](int64_t t) {
        return [&, from = step.wide + t * F](int64_t i) { return activate(model.activation, load(from + i)); };
    };
#pragma omp parallel num_threads(step.num_threads)
    {
        embed(step, model.embedding, model.C);
        const auto windows = windows_of(step, model.window, step.x);
        const auto read = [&](const Linear& linear, float* y, bool add) {
            multiply<E>(linear, pack<E>(step, T, linear.K, windows), y, add);
        };
        read(model.layers[0], step.wide, false);
        for (int64_t l = 1; l < model.n_layer; ++l)
            multiply<E>(model.layers[l], pack<E>(step, T, F, activated), step.wide);
        multiply<E>(model.output, pack<E>(step, T, F, activated), step.side);
        if (model.direct.packed) read(model.direct, step.side, true);
        keep(step, model.window, step.x);
        project<E>(step, model.head, rows_of(step.side, model.C));
    }
}

}  // namespace
