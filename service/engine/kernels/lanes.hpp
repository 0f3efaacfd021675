// Vectors, and what stands in their lanes. A lane is four bytes: one fp32, two bf16 or four int8 neighbours of a row.
// Every product of this folder is `dot`: it multiplies a lane with those of a vector, and adds to as many sums.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))

#if defined(__AVX512F__)
constexpr int64_t W = 16;  // lanes of a register
#elif defined(__AVX2__)
constexpr int64_t W = 8;
#else
constexpr int64_t W = 4;
#endif

using Lane = uint32_t;
typedef float Vec __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef int32_t IntVec __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef Lane LaneVec __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef uint8_t ByteVec __attribute__((vector_size(W), aligned(1), may_alias));

INLINE Vec load(const float* from) { return *reinterpret_cast<const Vec*>(from); }
INLINE LaneVec load(const Lane* from) { return *reinterpret_cast<const LaneVec*>(from); }
INLINE void store(float* to, Vec x) { *reinterpret_cast<Vec*>(to) = x; }
INLINE Vec splat(float x) { return x - Vec{}; }
INLINE LaneVec splat(Lane x) { return x - LaneVec{}; }
INLINE Vec as_floats(LaneVec x) { return reinterpret_cast<Vec&>(x); }

INLINE float sum(Vec x) {
    float total = 0;
    for (int64_t i = 0; i < W; ++i) total += x[i];
    return total;
}

INLINE float largest(Vec x) {
    float most = x[0];
    for (int64_t i = 1; i < W; ++i) most = std::max(most, x[i]);
    return most;
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
    return y * as_floats((LaneVec)(n + 127) << 23);
}

struct Fp32 {
    static constexpr int64_t WIDTH = 1;
    static constexpr bool QUANTIZES = false;
    using Scalar = float;
    using Sum = Vec;

    INLINE Sum dot(Sum total, LaneVec x, LaneVec w) { return total + as_floats(x) * as_floats(w); }
    INLINE float widen(Scalar x) { return x; }
    INLINE Scalar narrow(float x) { return x; }
    INLINE void pack(Vec x, float, Lane* to) { *reinterpret_cast<Vec*>(to) = x; }
};

struct Bf16 {
    static constexpr int64_t WIDTH = 2;
    static constexpr bool QUANTIZES = false;
    using Scalar = uint16_t;
    using Sum = Vec;

    INLINE Sum dot(Sum total, LaneVec x, LaneVec w) {
#if defined(__AVX512BF16__)
        return (Vec)_mm512_dpbf16_ps((__m512)total, (__m512bh)x, (__m512bh)w);
#else
        total += as_floats(x << 16) * as_floats(w << 16);
        return total + as_floats(x & 0xffff0000u) * as_floats(w & 0xffff0000u);
#endif
    }
    INLINE float widen(Scalar x) {
        const Lane bits = static_cast<Lane>(x) << 16;
        float y;
        std::memcpy(&y, &bits, sizeof y);
        return y;
    }
    // To the nearest, ties to even; what is no number stays none.
    INLINE Scalar narrow(float x) {
        Lane bits;
        std::memcpy(&bits, &x, sizeof bits);
        return x != x ? 0x7fc0 : static_cast<Scalar>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
    INLINE void pack(Vec x, float, Lane* to) {
#if defined(__AVX512BF16__)
        const auto halves = _mm512_cvtneps_pbh((__m512)x);
        std::memcpy(to, &halves, sizeof halves);
#else
        for (int64_t i = 0; i < W / 2; ++i) to[i] = narrow(x[2 * i]) | static_cast<Lane>(narrow(x[2 * i + 1])) << 16;
#endif
    }
};

// Activations as x / scale + 128, unsigned; weights signed. What the 128 adds to a sum is taken off in the end.
struct Int8 {
    static constexpr int64_t WIDTH = 4;
    static constexpr bool QUANTIZES = true;
    static constexpr int32_t ZERO = 128;
    using Sum = IntVec;

    INLINE Sum dot(Sum total, LaneVec x, LaneVec w) {
#if defined(__AVX512VNNI__)
        return (IntVec)_mm512_dpbusd_epi32((__m512i)total, (__m512i)x, (__m512i)w);
#elif defined(__AVX512F__)
        const __m512i even = _mm512_set1_epi16(255), a = (__m512i)x, b = (__m512i)w;
        total += (IntVec)_mm512_madd_epi16(_mm512_and_si512(a, even), _mm512_srai_epi16(_mm512_slli_epi16(b, 8), 8));
        return total + (IntVec)_mm512_madd_epi16(_mm512_srli_epi16(a, 8), _mm512_srai_epi16(b, 8));
#elif defined(__AVX2__)
        const __m256i even = _mm256_set1_epi16(255), a = (__m256i)x, b = (__m256i)w;
        total += (IntVec)_mm256_madd_epi16(_mm256_and_si256(a, even), _mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8));
        return total + (IntVec)_mm256_madd_epi16(_mm256_srli_epi16(a, 8), _mm256_srai_epi16(b, 8));
#else
        const IntVec a = (IntVec)x, b = (IntVec)w;
        for (int shift = 0; shift < 32; shift += 8) total += (a >> shift & 255) * (b << (24 - shift) >> 24);
        return total;
#endif
    }
    INLINE void pack(Vec x, float inverse_scale, Lane* to) {
        const IntVec shifted = __builtin_convertvector(x * inverse_scale + (ZERO + 0.5f), IntVec);
        const ByteVec bytes = __builtin_convertvector(shifted, ByteVec);
        std::memcpy(to, &bytes, sizeof bytes);
    }
};

// Lays n values out as lanes; `value(i)` gives those from i on, a vector of them. Returns what the lanes are to be
// multiplied with.
template <class E, class Value>
INLINE float pack_row(int64_t n, Lane* to, Value value) {
    float scale = 1;
    if constexpr (E::QUANTIZES) {
        Vec most{}, zeros{};
        for (int64_t i = 0; i < n; i += W) {
            const Vec x = value(i), size = x < 0 ? -x : x;
            most = size > most ? size : most;
            zeros += x * 0.0f;  // NaN where x is not finite, which comparisons and integers would hide
        }
        scale = std::max(largest(most), 1e-30f) / 127 + sum(zeros);
    }
    for (int64_t i = 0; i < n; i += W) E::pack(value(i), 1 / scale, to + i / E::WIDTH);
    return scale;
}
