// One step of a recurrent network: a layer reads all tokens of the step in one product, then position by position what
// its state makes of them, the chunks side by side.
#pragma once

#include <numeric>
#include <vector>

#include "activations.hpp"
#include "slots.hpp"

extern "C" {

// Mirrored in structures.py (layout.hpp).
struct RecurrentLayer {
    Linear input, hidden;  // gates side by side
    float* state;          // [slots][1, or 2 of an LSTM][F]: h, and c behind it
};
struct RecurrentModel {
    int64_t n_layer, C, F, cell, activation;  // the last of the simple cell
    const float* embedding;                   // [V][C]
    Linear projection, head;                  // F to C, not packed where they are the same; C to V
    const RecurrentLayer* layers;
};
}

namespace {

enum Cell : int64_t { SIMPLE, LSTM, GRU };

// h, and behind it c of an LSTM, of a chunk's sequence.
INLINE float* state_of(const RecurrentModel& model, const RecurrentLayer& layer, const SlotStep& step, int64_t chunk) {
    return layer.state + step.slots[chunk] * (model.cell == LSTM ? 2 : 1) * model.F;
}

// From the gates' products with what is read and with the state, each with its bias, to the next state.
// Elman 1990; Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000; Cho et al. 2014.
INLINE void move(const RecurrentModel& model, const float* read, const float* kept, float* h) {
    const int64_t F = model.F;
    for (int64_t i = 0; i < F; i += W) {
        const auto gate = [&](int64_t n) { return load(read + n * F + i) + load(kept + n * F + i); };
        if (model.cell == LSTM) {
            const Vec c = sigmoid(gate(1)) * load(h + F + i) + sigmoid(gate(0)) * tanh(gate(2));
            store(h + F + i, c);
            store(h + i, sigmoid(gate(3)) * tanh(c));
        } else if (model.cell == GRU) {
            const Vec reset = sigmoid(gate(0)), update = sigmoid(gate(1));
            const Vec candidate = tanh(load(read + 2 * F + i) + reset * load(kept + 2 * F + i));
            store(h + i, candidate + update * (load(h + i) - candidate));
        } else {
            store(h + i, activate(model.activation, gate(0)));
        }
    }
}

// From x (T, K) to x (T, F).
template <class E>
void run_layer(const RecurrentModel& model, const RecurrentLayer& layer, const SlotStep& step) {
    const int64_t F = model.F, K = layer.input.K;
    multiply<E>(layer.input, pack<E>(step, step.num_tokens, K, rows_of(step.x, K)), step.wide);
    std::vector<int64_t> going(step.num_chunks);  // each thread has its own, all the same
    std::iota(going.begin(), going.end(), 0);
    for (int64_t at = 0;; ++at) {
        const auto is_over = [&](int64_t chunk) { return step.starts[chunk] + at >= end_of(step, chunk); };
        going.erase(std::remove_if(going.begin(), going.end(), is_over), going.end());
        if (going.empty()) return;
        const auto M = static_cast<int64_t>(going.size());
        const auto past = [&](int64_t m) {
            return [h = state_of(model, layer, step, going[m])](int64_t i) { return load(h + i); };
        };
        multiply<E>(layer.hidden, pack<E>(step, M, F, past), step.side);
#pragma omp for schedule(static)
        for (int64_t m = 0; m < M; ++m) {
            const int64_t t = step.starts[going[m]] + at;
            float* h = state_of(model, layer, step, going[m]);
            move(model, step.wide + t * layer.input.N, step.side + m * layer.hidden.N, h);
            std::memcpy(step.x + t * F, h, F * sizeof(float));
        }
    }
}

template <class E>
void run(const RecurrentModel& model, const SlotStep& step) {
#pragma omp parallel num_threads(step.num_threads)
    {
        embed(step, model.embedding, model.C);
        for (int64_t l = 0; l < model.n_layer; ++l) run_layer<E>(model, model.layers[l], step);
        if (model.projection.packed) {
            multiply<E>(model.projection, pack<E>(step, step.num_tokens, model.F, rows_of(step.x, model.F)), step.side);
            project<E>(step, model.head, rows_of(step.side, model.C));
        } else {
            project<E>(step, model.head, rows_of(step.x, model.F));
        }
    }
}

}  // namespace
