// Entry points of the kernels, for Python and for layers.cpp. Each is documented at its definition.
#pragma once

#include <cstdint>

#include "entry.h"
#include "vec.h"

extern "C" {

void ENTRY(linear)(const tandem::bf16* x, const tandem::bf16* panels, const tandem::bf16* bias,
                   const tandem::bf16* residual, void* out, long num_rows, long width, long num_columns, int float_out,
                   int num_threads);

void ENTRY(rms_norm)(const tandem::bf16* x, const tandem::bf16* weight, tandem::bf16* out, long num_rows, long width,
                     float eps, int num_threads);

void ENTRY(rotate_heads)(tandem::bf16* x, const tandem::bf16* weight, const float* cosines, const float* sines,
                         long num_rows, long stride, long heads, long size, float eps, int num_threads);

void ENTRY(swiglu)(const tandem::bf16* x, tandem::bf16* out, long num_rows, long width, int num_threads);

void ENTRY(add_rows)(tandem::bf16* x, const tandem::bf16* y, long num_rows, long stride, long width, int num_threads);

void ENTRY(largest)(const float* x, float* values, std::int64_t* indices, long num_rows, long width, int num_threads);

void ENTRY(attention)(const tandem::bf16* q, const tandem::bf16* k, const tandem::bf16* v, tandem::bf16* keys,
                      tandem::bf16* values, const std::int32_t* spans, const std::int32_t* tables, tandem::bf16* out,
                      long stride, long num_spans, long heads, long kv_heads, long size, long block_size,
                      int num_threads);

}  // extern "C"
