// All layers of the decoder for one batch. Calling each operation from Python would take as long as reading a twentieth
// of the weights of a small model.

#include <cstring>
#include <memory>

#include "kernels.h"
#include "low_bit.h"

namespace {

using tandem::bf16;

struct Matrix {
  const bf16 *panels, *bias;       // the bias may be null
  const tandem::LowBit* low_bit;  // if not null, it replaces both
};

struct Layer {
  const bf16 *attention_norm, *q_norm, *k_norm, *mlp_norm;  // q_norm and k_norm may be null
  Matrix qkv, out, gate_up, down;
};

struct Model {
  const Layer* layers;
  long num_layers, num_levels, width, heads, kv_heads, size, mlp_width;  // fewer levels than layers
  float eps;
};

// Visual tokens of an image on neighbouring rows of the batch.
struct Image {
  const bf16* levels;  // [num_rows][num_levels][width], rows `stride` elements apart
  long first, num_rows, stride;
};

struct Batch {
  const float *cosines, *sines;  // [num_rows][size / 2]
  bf16 *const *keys, *const *values;  // of each layer, see attention.cpp
  const std::int32_t *spans, *tables;
  const std::int64_t* wanted;  // [num_wanted] rows, ascending
  const Image* images;         // [num_images]
  long num_rows, num_spans, block_size, num_wanted, num_images;
};

// One step through the model, with its buffers.
class Step {
 public:
  Step(const Model& model, const Batch& batch, bf16* hidden, int num_threads)
      : model_(model),
        batch_(batch),
        num_rows_(batch.num_rows),
        num_threads_(num_threads),
        hidden_(hidden),
        normed_(allocate(model.width)),
        qkv_(allocate((model.heads + 2 * model.kv_heads) * model.size)),
        attended_(allocate(model.heads * model.size)),
        gate_up_(allocate(2 * model.mlp_width)),
        gated_(allocate(model.mlp_width)) {}

  void run() {
    for (long index = 0; index < model_.num_layers; ++index) {
      const Layer& layer = model_.layers[index];
      attend(layer, index);
      if (index == model_.num_layers - 1) drop_unwanted();
      linear(attended_.get(), layer.out, hidden_, hidden_, model_.heads * model_.size, model_.width);
      feed_forward(layer);
      if (index < model_.num_levels) add_level(index);
    }
  }

 private:
  std::unique_ptr<bf16[]> allocate(long width) const {
    return std::make_unique_for_overwrite<bf16[]>(batch_.num_rows * width);
  }

  void linear(const bf16* x, const Matrix& matrix, const bf16* residual, bf16* out, long width,
              long num_columns) const {
    if (matrix.low_bit) return ENTRY(low_bit)(matrix.low_bit, x, residual, out, num_rows_, false, num_threads_);
    ENTRY(linear)(x, matrix.panels, matrix.bias, residual, out, num_rows_, width, num_columns, false, num_threads_);
  }

  void norm(const bf16* weight) const {
    ENTRY(rms_norm)(hidden_, weight, normed_.get(), num_rows_, model_.width, model_.eps, num_threads_);
  }

  void rotate(bf16* heads, const bf16* weight, long num_heads, long stride) const {
    ENTRY(rotate_heads)(heads, weight, batch_.cosines, batch_.sines, num_rows_, stride, num_heads, model_.size,
                        model_.eps, num_threads_);
  }

  void attend(const Layer& layer, long index) const {
    const long stride = (model_.heads + 2 * model_.kv_heads) * model_.size;
    bf16 *const q = qkv_.get(), *const k = q + model_.heads * model_.size, *const v = k + model_.kv_heads * model_.size;
    norm(layer.attention_norm);
    linear(normed_.get(), layer.qkv, nullptr, q, model_.width, stride);
    rotate(q, layer.q_norm, model_.heads, stride);
    rotate(k, layer.k_norm, model_.kv_heads, stride);
    ENTRY(attention)(q, k, v, batch_.keys[index], batch_.values[index], batch_.spans, batch_.tables, attended_.get(),
                     stride, batch_.num_spans, model_.heads, model_.kv_heads, model_.size, batch_.block_size,
                     num_threads_);
  }

  void feed_forward(const Layer& layer) const {
    norm(layer.mlp_norm);
    linear(normed_.get(), layer.gate_up, nullptr, gate_up_.get(), model_.width, 2 * model_.mlp_width);
    ENTRY(swiglu)(gate_up_.get(), gated_.get(), num_rows_, model_.mlp_width, num_threads_);
    linear(gated_.get(), layer.down, hidden_, hidden_, model_.mlp_width, model_.width);
  }

  // Adds a DeepStack level to the rows of images. All rows are still there, because the last layer has no level.
  void add_level(long level) const {
    for (long index = 0; index < batch_.num_images; ++index) {
      const Image& image = batch_.images[index];
      ENTRY(add_rows)(hidden_ + image.first * model_.width, image.levels + level * model_.width, image.num_rows,
                      image.stride, model_.width, num_threads_);
    }
  }

  // Drops all rows but the wanted ones. They ascend, so no row is overwritten before it is moved.
  void drop_unwanted() {
    num_rows_ = batch_.num_wanted;
    const auto move = [this](bf16* rows, long width) {
      for (long i = 0; i < num_rows_; ++i)
        std::memmove(rows + i * width, rows + batch_.wanted[i] * width, width * sizeof(bf16));
    };
    move(attended_.get(), model_.heads * model_.size);
    move(hidden_, model_.width);
  }

  const Model& model_;
  const Batch& batch_;
  long num_rows_;
  const int num_threads_;
  bf16* const hidden_;
  const std::unique_ptr<bf16[]> normed_, qkv_, attended_, gate_up_, gated_;
};

}  // namespace

// Replaces hidden[rows][width] by the last layer's output for the wanted rows, one after the other.
extern "C" void ENTRY(layers)(const Model* model, const Batch* batch, bf16* hidden, int num_threads) {
  Step(*model, *batch, hidden, num_threads).run();
}
