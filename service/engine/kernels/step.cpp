// One step of a model, all tokens and all layers in one call, and the draw of the tokens that come next.
//
// Every output element is summed in one fixed order that depends on nothing but the shape of the model: not on the
// number of tokens in the step, not on their order, not on the threads. So a token's logits are the same bits alone, in
// any batch, and in any chunking of its prefill.
//
// This file is compiled once for each kind of processor (pyproject.toml); library.py loads the best that this one runs.

#include "gpt.hpp"
#include "layout.hpp"
#include "recurrent.hpp"
#include "sampling.hpp"
#include "windows.hpp"

extern "C" {

void minigpt_gpt_fp32(const GPTModel* model, const GPTStep* step) { GPTRun<Fp32, Fp32>{*model, *step}.run(); }
void minigpt_gpt_bf16(const GPTModel* model, const GPTStep* step) { GPTRun<Bf16, Bf16>{*model, *step}.run(); }
void minigpt_gpt_int8(const GPTModel* model, const GPTStep* step) { GPTRun<Int8, Bf16>{*model, *step}.run(); }

void minigpt_recurrent_fp32(const RecurrentModel* model, const SlotStep* step) { run<Fp32>(*model, *step); }
void minigpt_recurrent_bf16(const RecurrentModel* model, const SlotStep* step) { run<Bf16>(*model, *step); }
void minigpt_recurrent_int8(const RecurrentModel* model, const SlotStep* step) { run<Int8>(*model, *step); }

void minigpt_conv_fp32(const ConvolutionModel* model, const SlotStep* step) { run<Fp32>(*model, *step); }
void minigpt_conv_bf16(const ConvolutionModel* model, const SlotStep* step) { run<Bf16>(*model, *step); }
void minigpt_conv_int8(const ConvolutionModel* model, const SlotStep* step) { run<Int8>(*model, *step); }

void minigpt_mlp_fp32(const PerceptronModel* model, const SlotStep* step) { run<Fp32>(*model, *step); }
void minigpt_mlp_bf16(const PerceptronModel* model, const SlotStep* step) { run<Bf16>(*model, *step); }
void minigpt_mlp_int8(const PerceptronModel* model, const SlotStep* step) { run<Int8>(*model, *step); }

// What the structures of this file look like in memory (layout.hpp).
const char* minigpt_layout() {
    static const std::string layout = describe_layout();
    return layout.c_str();
}

// Outputs of a panel.
int64_t minigpt_panel() { return W; }

// The next token of each of `num_rows` rows (V); -1 where logits are not finite. Changes the logits.
void minigpt_sample(float* logits, int64_t stride, int64_t V, const Draw* draws, int64_t num_rows,
                    const int64_t* banned, int64_t num_banned, int64_t num_threads, int64_t* drawn) {
#pragma omp parallel num_threads(num_threads) if (num_rows > 1)
    {
        std::vector<int32_t> counts(V);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < num_rows; ++i)
            drawn[i] = sample(logits + i * stride, V, draws[i], banned, num_banned, counts);
    }
}

// Whether this processor runs what this file was compiled for at `level` (library.py).
int minigpt_supports(int level) {
#if defined(__x86_64__)
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    const bool levels[] = {
        true, avx2, avx512, avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni")};
    return levels[level];
#else
    return level == 0;
#endif
}
}
