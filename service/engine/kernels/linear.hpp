// Products with weights that were packed once: panels of W outputs, [N / W][K / WIDTH][W] lanes.
//
// Each output is summed over k ascending, one lane after the other, whatever the number of rows: its bits depend on
// nothing else. Each `omp for` belongs to the threads that call, all of them.
#pragma once

#include "lanes.hpp"

// Mirrored in structures.py (layout.hpp).
struct Linear {
    const Lane* packed;
    const float* scales;     // of each output, where weights are int8
    const int32_t* offsets;  // 128 times the sum of an output's weights, where they are int8
    const float* bias;       // of each output; null: none
    int64_t K, N;
};

// Rows of activations as lanes, [M][K / WIDTH], each with its scale.
struct Rows {
    const Lane* lanes;
    const float* scales;
    int64_t M;

    // Lays out M rows of n values; `row(m)(i)` gives a vector of row m from i on. Then `lanes` and `scales` are those.
    template <class E, class Row>
    static Rows pack(Lane* lanes, float* scales, int64_t M, int64_t n, Row row) {
#pragma omp for schedule(static)
        for (int64_t m = 0; m < M; ++m) scales[m] = pack_row<E>(n, lanes + m * n / E::WIDTH, row(m));
        return {lanes, scales, M};
    }
};

// Rows and panels at once, so many that their sums fill the registers: for up to 3 rows, up to 7, and more.
#if defined(__AVX512F__)
constexpr int FEW[] = {2, 8}, SOME[] = {4, 6}, MANY[] = {8, 3};
#else
constexpr int FEW[] = {2, 4}, SOME[] = {4, 2}, MANY[] = {4, 3};
#endif

template <class E>
INLINE Vec finish(typename E::Sum total, const Linear& linear, int64_t n, float scale) {
    Vec result;
    if constexpr (!E::QUANTIZES) result = total;
    else {
        const IntVec offset = *reinterpret_cast<const IntVec*>(linear.offsets + n);
        result = __builtin_convertvector(total - offset, Vec) * (load(linear.scales + n) * scale);
    }
    return linear.bias ? result + load(linear.bias + n) : result;
}

// y[m][n] (+)= bias[n] + sum over k of x[m][k] w[n][k] for R rows from m on and P panels from p on.
template <class E, int R, int P>
INLINE void multiply(const Linear& linear, const Rows& x, float* y, bool add, int64_t m, int64_t p) {
    const int64_t K = linear.K / E::WIDTH;
    const Lane *rows = x.lanes + m * K, *panels = linear.packed + p * K * W;
    typename E::Sum total[R][P] = {};
    for (int64_t k = 0; k < K; ++k) {
        LaneVec w[P];
        for (int i = 0; i < P; ++i) w[i] = load(panels + (i * K + k) * W);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const LaneVec lane = splat(rows[r * K + k]);
            for (int i = 0; i < P; ++i) total[r][i] = E::dot(total[r][i], lane, w[i]);
        }
    }
    for (int r = 0; r < R; ++r)
        for (int i = 0; i < P; ++i) {
            const int64_t n = (p + i) * W;
            float* to = y + (m + r) * linear.N + n;
            const Vec result = finish<E>(total[r][i], linear, n, x.scales[m + r]);
            store(to, add ? load(to) + result : result);
        }
}

template <class E, int R, int P>
INLINE void multiply_rows(const Linear& linear, const Rows& x, float* y, bool add, int64_t p, int64_t m = 0) {
    for (; m + R <= x.M; m += R) multiply<E, R, P>(linear, x, y, add, m, p);
    if constexpr (R > 1) multiply_rows<E, R / 2, P>(linear, x, y, add, p, m);
}

template <class E, int R, int P>
void multiply_panels(const Linear& linear, const Rows& x, float* y, bool add) {
    const int64_t panels = linear.N / W, blocks = (panels + P - 1) / P;
#pragma omp for schedule(static)
    for (int64_t block = 0; block < blocks; ++block) {
        const int64_t first = block * P;
        if (first + P <= panels) multiply_rows<E, R, P>(linear, x, y, add, first);
        else
            for (int64_t p = first; p < panels; ++p) multiply_rows<E, R, 1>(linear, x, y, add, p);
    }
}

// y = x wᵀ + bias, or y += that: x (M, K), w (N, K), y (M, N).
template <class E>
void multiply(const Linear& linear, const Rows& x, float* y, bool add = false) {
    if (x.M < 4) multiply_panels<E, FEW[0], FEW[1]>(linear, x, y, add);
    else if (x.M < 8) multiply_panels<E, SOME[0], SOME[1]>(linear, x, y, add);
    else multiply_panels<E, MANY[0], MANY[1]>(linear, x, y, add);
}
