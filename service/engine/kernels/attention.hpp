// Attention over pages of 16 tokens. A page holds, for each head, keys [D / WIDTH][16] and values [16 / WIDTH][D], both
// as lanes: scores are sums over vectors of tokens, results sums over vectors of the head.
#pragma once

#include "lanes.hpp"

constexpr int64_t PAGE = 16;

// A head's page; E is what keys and values are kept in.
template <class E>
struct Page {
    Lane *keys, *values;

    // What shares a lane may be written by another thread meanwhile, but for the slots behind the newest token.
    void write(const float* k, const float* v, int64_t D, int64_t slot, bool newest) const {
        using Scalar = typename E::Scalar;
        constexpr int64_t N = E::WIDTH;
        auto *key = reinterpret_cast<Scalar*>(keys), *value = reinterpret_cast<Scalar*>(values + slot / N * D);
        for (int64_t d = 0; d < D; ++d) key[(d / N * PAGE + slot) * N + d % N] = E::narrow(k[d]);
        for (int64_t d = 0; d < D; ++d) {
            value[d * N + slot % N] = E::narrow(v[d]);
            // A lane's later tokens count 0 until they come; zeros times what an older use of the page left might not.
            for (int64_t later = slot % N + 1; newest && later < N; ++later) value[d * N + later] = 0;
        }
    }
};

// The past of one token: its own page is the last.
template <class E>
struct Past {
    Lane *keys, *values;   // of a layer, from the head's part of page 0 on
    int64_t page_lanes;    // from a page to the next, of one head
    const int64_t* pages;  // of the sequence
    int64_t D, length;

    Page<E> page(int64_t position) const {
        const int64_t at = pages[position / PAGE] * page_lanes;
        return {keys + at, values + at};
    }
};

// The scores of a vector of keys: four sums side by side, since each waits for its own last addition only. Meanwhile the
// values of this head are asked for, which come next, and the next head's keys, which stand right behind its own.
template <class E>
INLINE Vec score(const Lane* q, const Lane* keys, const Lane* values, int64_t D) {
    const int64_t lanes = D / E::WIDTH;
    Vec dots[4] = {};
    for (int64_t d = 0; d < lanes; d += 4)
        for (int64_t i = 0; i < 4; ++i) {
            __builtin_prefetch(values + (d + i) * PAGE, 0, 2);
            __builtin_prefetch(keys + (lanes + d + i) * PAGE, 0, 2);
            dots[i] = E::dot(dots[i], splat(q[d + i]), load(keys + (d + i) * PAGE));
        }
    return (dots[0] + dots[1]) + (dots[2] + dots[3]);
}

// y = share × sum over the past of weights[i] × values[i], for N vectors of a head from d on, i ascending.
template <class E, int N>
INLINE void mix(const Past<E>& past, const Lane* weights, float share, int64_t d, float* y) {
    Vec mixed[N] = {};
    for (int64_t at = 0; at < past.length; at += PAGE) {
        const Lane *values = past.page(at).values + d, *w = weights + at / E::WIDTH;
        const int64_t count = (std::min(PAGE, past.length - at) + E::WIDTH - 1) / E::WIDTH;
        for (int64_t i = 0; i < count; ++i)
            for (int n = 0; n < N; ++n) mixed[n] = E::dot(mixed[n], splat(w[i]), load(values + i * past.D + n * W));
    }
    for (int n = 0; n < N; ++n) store(y + d + n * W, mixed[n] * share);
}

// One query (D lanes' worth) over its past, to y (D). `scores` and `weights` are room for as many as the past has
// tokens, rounded up to whole pages.
template <class E>
INLINE void attend(const Past<E>& past, const Lane* q, float* scores, Lane* weights, float* y) {
    const int64_t D = past.D, length = past.length;
    const float scale = 1.0f / std::sqrt(static_cast<float>(D));
    Vec most = splat(-INFINITY);
    IntVec lanes;
    for (int32_t i = 0; i < W; ++i) lanes[i] = i;
    for (int64_t at = 0; at < length; at += W) {
        const Page<E> page = past.page(at);
        Vec dots = score<E>(q, page.keys + at % PAGE, page.values, D) * scale;
        dots = lanes < static_cast<int32_t>(std::min(W, length - at)) ? dots : splat(-INFINITY);
        most = dots > most ? dots : most;
        store(scores + at, dots);
    }
    const float highest = largest(most);
    Vec total{};
    for (int64_t at = 0; at < length; at += W) {
        const Vec dots = load(scores + at), weight = dots == -INFINITY ? Vec{} : exponential(dots - highest);
        total += weight;
        E::pack(weight, 1, weights + at / E::WIDTH);
    }
    const float share = 1.0f / sum(total);
    int64_t d = 0;
    for (; d + 4 * W <= D; d += 4 * W) mix<E, 4>(past, weights, share, d, y);
    for (; d < D; d += W) mix<E, 1>(past, weights, share, d, y);
}
