// The elementwise nonlinearities, in the order of their names in structures.py.
#pragma once

#include "lanes.hpp"

enum Activation : int64_t { IDENTITY, SIGMOID, TANH, RELU, LEAKY_RELU, GELU, SILU, RELU2 };

INLINE Vec sigmoid(Vec x) { return 1.0f / (1.0f + exponential(-x)); }

// To 1e-7, absolute.
INLINE Vec tanh(Vec x) { return 2.0f * sigmoid(2.0f * x) - 1.0f; }

INLINE Vec activate(int64_t activation, Vec x) {
    switch (activation) {
        case SIGMOID: return sigmoid(x);
        case TANH: return tanh(x);
        case RELU: return x < 0 ? Vec{} : x;
        case LEAKY_RELU: return x < 0 ? 0.01f * x : x;
        // Hendrycks and Gimpel 2016 (arXiv 1606.08415), section 2, the approximation by tanh.
        case GELU: return x * sigmoid(1.5957691216f * (x + 0.044715f * x * x * x));
        case SILU: return x * sigmoid(x);
        case RELU2: return x < 0 ? Vec{} : x * x;
        default: return x;
    }
}
