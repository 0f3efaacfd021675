// The next token of a row of logits: what torch_sampler.py does with torch, in one pass over the row.
#pragma once

#include <functional>
#include <vector>

#include "lanes.hpp"

// How one row's token is drawn; mirrored in structures.py (layout.hpp).
struct Draw {
    uint64_t seed, choice, position;  // fix the random number
    double temperature, top_p, min_p;
    int64_t top_k;  // 0: all
    double repetition_penalty, presence_penalty, frequency_penalty;
    int64_t num_bias;
    const int64_t* bias_ids;
    const float* bias;
    int64_t num_prompt, num_tokens;  // num_tokens: 0 where no penalty asks for the tokens so far
    const int64_t* token_ids;
};

namespace {

// Source: SplitMix64 (Steele, Lea and Flood 2014, Fast splittable pseudorandom number generators).
INLINE uint64_t mixed(uint64_t value) {
    value += 0x9E3779B97F4A7C15;
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9;
    value = (value ^ value >> 27) * 0x94D049BB133111EB;
    return value ^ value >> 31;
}

INLINE double uniform(const Draw& draw) {
    return static_cast<double>(mixed(mixed(mixed(draw.seed) ^ draw.choice) ^ draw.position) >> 11) * 0x1p-53;
}

bool all_finite(const float* logits, int64_t V) {
    return std::all_of(logits, logits + V, [](float x) { return std::isfinite(x); });
}

// Keskar et al. 2019, section 4.1, over all tokens; OpenAI's penalties over the generated ones.
void adjust(float* logits, const Draw& draw, std::vector<int32_t>& counts) {
    for (int64_t i = 0; i < draw.num_bias; ++i) logits[draw.bias_ids[i]] += draw.bias[i];
    for (int64_t i = 0; i < draw.num_tokens; ++i) {
        const int64_t id = draw.token_ids[i];
        float& logit = logits[id];
        if (counts[id]++ == 0)
            logit = static_cast<float>(logit > 0 ? logit / draw.repetition_penalty : logit * draw.repetition_penalty);
    }
    for (int64_t i = 0; i < draw.num_tokens; ++i) counts[draw.token_ids[i]] = 0;
    for (int64_t i = draw.num_prompt; i < draw.num_tokens; ++i) ++counts[draw.token_ids[i]];
    for (int64_t i = draw.num_prompt; i < draw.num_tokens; ++i) {
        int32_t& count = counts[draw.token_ids[i]];
        if (count == 0) continue;
        logits[draw.token_ids[i]] -= static_cast<float>(draw.presence_penalty + draw.frequency_penalty * count);
        count = 0;
    }
}

// The weight under which top-k, then top-p, then min-p leave a token out; ties at a border stay in.
// Source: top-p, Holtzman et al. 2020 (arXiv 1904.09751); min-p, Nguyen et al. 2024 (arXiv 2407.01082).
float border(const std::vector<float>& weights, const Draw& draw) {
    std::vector<float> kept(weights);
    float lowest = static_cast<float>(draw.min_p);  // of the greatest weight, which is 1
    const auto num_kept = draw.top_k == 0 ? kept.size() : std::min<size_t>(draw.top_k, kept.size());
    if (num_kept < kept.size()) {
        std::nth_element(kept.begin(), kept.begin() + num_kept - 1, kept.end(), std::greater<>());
        const float by_top_k = kept[num_kept - 1];
        lowest = std::max(lowest, by_top_k);
        kept.erase(std::remove_if(kept.begin(), kept.end(), [&](float w) { return w < by_top_k; }), kept.end());
    }
    if (draw.top_p >= 1) return lowest;
    double total = 0, sum = 0;
    for (const float w : kept) total += w;
    auto sorted = kept.begin();  // a few of the largest hold most of the mass: rarely more than those are put in order
    for (auto at = kept.begin(); at != kept.end(); ++at) {
        if (at == sorted) {
            sorted += std::min<std::ptrdiff_t>(kept.end() - at, 32 + 3 * (at - kept.begin()));
            std::partial_sort(at, sorted, kept.end(), std::greater<>());
        }
        sum += *at;
        if (sum >= draw.top_p * total) return std::max(lowest, *at);
    }
    return std::max(lowest, kept.back());
}

// By inversion, in order of ids.
int64_t draw_token(const float* logits, int64_t V, const Draw& draw) {
    const float most = *std::max_element(logits, logits + V), rate = static_cast<float>(1 / draw.temperature);
    std::vector<float> weights((V + W - 1) / W * W);
    for (int64_t i = 0; i < V; ++i) weights[i] = (logits[i] - most) * rate;
    for (int64_t i = V; i < static_cast<int64_t>(weights.size()); ++i) weights[i] = -INFINITY;
    for (size_t i = 0; i < weights.size(); i += W) {
        const Vec x = load(&weights[i]);
        store(&weights[i], x < -87.0f ? Vec{} : exponential(x));
    }
    if (draw.top_k > 0 || draw.top_p < 1 || draw.min_p > 0) {
        const float lowest = border(weights, draw);
        for (float& w : weights) w = w < lowest ? 0 : w;
    }
    double total = 0;
    for (const float w : weights) total += w;
    // Below the total even where the product rounds up to it; then the first id whose cumulative share is greater.
    const double target = std::min(uniform(draw) * total, std::nextafter(total, 0.0));
    double sum = 0;
    int64_t id = 0;
    while (id + 1 < V && (sum += weights[id]) <= target) ++id;
    return id;
}

int64_t sample(float* logits, int64_t V, const Draw& draw, const int64_t* banned, int64_t num_banned,
               std::vector<int32_t>& counts) {
    if (!all_finite(logits, V)) return -1;
    for (int64_t i = 0; i < num_banned; ++i) logits[banned[i]] = -INFINITY;
    adjust(logits, draw, counts);
    return draw.temperature > 0 ? draw_token(logits, V, draw) : std::max_element(logits, logits + V) - logits;
}

}  // namespace
