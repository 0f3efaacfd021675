// What structures.py mirrors, as the compiler sees it: a line for each field, `Struct.field kind offset size`, for each
// struct, `Struct size`, and for each constant, `NAME value`. library.py compares it with its mirror when it loads.
#pragma once

#include <cstddef>
#include <string>
#include <type_traits>

#include "gpt.hpp"
#include "recurrent.hpp"
#include "sampling.hpp"
#include "windows.hpp"

namespace {

// As ctypes calls them: p pointer, q int64, Q uint64, d double, f float, S struct.
template <class T>
constexpr char kind() {
    if (std::is_pointer<T>::value) return 'p';
    if (std::is_same<T, int64_t>::value) return 'q';
    if (std::is_same<T, uint64_t>::value) return 'Q';
    if (std::is_same<T, double>::value) return 'd';
    if (std::is_same<T, float>::value) return 'f';
    return 'S';
}

std::string line(const char* name, int64_t value) { return std::string(name) + " " + std::to_string(value) + "\n"; }

template <class T>
std::string field(const char* name, int64_t offset) {
    return std::string(name) + " " + kind<T>() + " " + std::to_string(offset) + " " + std::to_string(sizeof(T)) + "\n";
}

#define CONSTANT(name) line(#name, name)
#define STRUCT(S) line(#S, sizeof(S))
#define FIELD(S, f) field<decltype(S::f)>(#S "." #f, offsetof(S, f))

std::string describe_layout() {
    return CONSTANT(PAGE) +
           CONSTANT(IDENTITY) + CONSTANT(SIGMOID) + CONSTANT(TANH) + CONSTANT(RELU) + CONSTANT(LEAKY_RELU) +
           CONSTANT(GELU) + CONSTANT(SILU) + CONSTANT(RELU2) +
           CONSTANT(SIMPLE) + CONSTANT(LSTM) + CONSTANT(GRU) +
           STRUCT(Linear) +
           FIELD(Linear, packed) + FIELD(Linear, scales) + FIELD(Linear, offsets) + FIELD(Linear, bias) +
           FIELD(Linear, K) + FIELD(Linear, N) +
           STRUCT(GPTLayer) +
           FIELD(GPTLayer, input_norm) + FIELD(GPTLayer, q_norm) + FIELD(GPTLayer, k_norm) + FIELD(GPTLayer, mlp_norm) +
           FIELD(GPTLayer, qkv) + FIELD(GPTLayer, o_proj) + FIELD(GPTLayer, gate_up) + FIELD(GPTLayer, down_proj) +
           FIELD(GPTLayer, keys) + FIELD(GPTLayer, values) +
           STRUCT(GPTModel) +
           FIELD(GPTModel, n_layer) + FIELD(GPTModel, C) + FIELD(GPTModel, H) + FIELD(GPTModel, G) +
           FIELD(GPTModel, D) + FIELD(GPTModel, F) + FIELD(GPTModel, max_context) + FIELD(GPTModel, norm_eps) +
           FIELD(GPTModel, embedding) + FIELD(GPTModel, norm) + FIELD(GPTModel, cosine) + FIELD(GPTModel, sine) +
           FIELD(GPTModel, head) + FIELD(GPTModel, layers) +
           STRUCT(GPTStep) +
           FIELD(GPTStep, num_tokens) + FIELD(GPTStep, num_samples) + FIELD(GPTStep, num_threads) +
           FIELD(GPTStep, token_ids) + FIELD(GPTStep, positions) + FIELD(GPTStep, tables) + FIELD(GPTStep, pages) +
           FIELD(GPTStep, samples) + FIELD(GPTStep, x) + FIELD(GPTStep, qkv) + FIELD(GPTStep, attended) +
           FIELD(GPTStep, gate_up) + FIELD(GPTStep, logits) + FIELD(GPTStep, q) + FIELD(GPTStep, lanes) +
           FIELD(GPTStep, scales) + FIELD(GPTStep, scores) + FIELD(GPTStep, weights) +
           STRUCT(RecurrentLayer) +
           FIELD(RecurrentLayer, input) + FIELD(RecurrentLayer, hidden) + FIELD(RecurrentLayer, state) +
           STRUCT(RecurrentModel) +
           FIELD(RecurrentModel, n_layer) + FIELD(RecurrentModel, C) + FIELD(RecurrentModel, F) +
           FIELD(RecurrentModel, cell) + FIELD(RecurrentModel, activation) + FIELD(RecurrentModel, embedding) +
           FIELD(RecurrentModel, projection) + FIELD(RecurrentModel, head) + FIELD(RecurrentModel, layers) +
           STRUCT(Window) +
           FIELD(Window, kept) + FIELD(Window, width) + FIELD(Window, taps) + FIELD(Window, dilation) +
           STRUCT(ConvolutionLayer) +
           FIELD(ConvolutionLayer, norm) + FIELD(ConvolutionLayer, norm_bias) + FIELD(ConvolutionLayer, window) +
           FIELD(ConvolutionLayer, convolution) + FIELD(ConvolutionLayer, projection) +
           STRUCT(ConvolutionModel) +
           FIELD(ConvolutionModel, n_layer) + FIELD(ConvolutionModel, C) + FIELD(ConvolutionModel, F) +
           FIELD(ConvolutionModel, activation) + FIELD(ConvolutionModel, gate_activation) +
           FIELD(ConvolutionModel, embedding) + FIELD(ConvolutionModel, norm) + FIELD(ConvolutionModel, norm_bias) +
           FIELD(ConvolutionModel, head) + FIELD(ConvolutionModel, layers) +
           STRUCT(PerceptronModel) +
           FIELD(PerceptronModel, n_layer) + FIELD(PerceptronModel, C) + FIELD(PerceptronModel, F) +
           FIELD(PerceptronModel, activation) + FIELD(PerceptronModel, embedding) + FIELD(PerceptronModel, window) +
           FIELD(PerceptronModel, output) + FIELD(PerceptronModel, direct) + FIELD(PerceptronModel, head) +
           FIELD(PerceptronModel, layers) +
           STRUCT(SlotStep) +
           FIELD(SlotStep, num_chunks) + FIELD(SlotStep, num_tokens) + FIELD(SlotStep, num_samples) +
           FIELD(SlotStep, num_threads) + FIELD(SlotStep, token_ids) + FIELD(SlotStep, chunks) +
           FIELD(SlotStep, starts) + FIELD(SlotStep, slots) + FIELD(SlotStep, positions) + FIELD(SlotStep, samples) +
           FIELD(SlotStep, x) + FIELD(SlotStep, wide) + FIELD(SlotStep, side) + FIELD(SlotStep, logits) +
           FIELD(SlotStep, lanes) + FIELD(SlotStep, scales) +
           STRUCT(Draw) +
           FIELD(Draw, seed) + FIELD(Draw, choice) + FIELD(Draw, position) + FIELD(Draw, temperature) +
           FIELD(Draw, top_p) + FIELD(Draw, min_p) + FIELD(Draw, top_k) + FIELD(Draw, repetition_penalty) +
           FIELD(Draw, presence_penalty) + FIELD(Draw, frequency_penalty) + FIELD(Draw, num_bias) +
           FIELD(Draw, bias_ids) + FIELD(Draw, bias) + FIELD(Draw, num_prompt) + FIELD(Draw, num_tokens) +
           FIELD(Draw, token_ids);
}

#undef CONSTANT
#undef STRUCT
#undef FIELD

}  // namespace
