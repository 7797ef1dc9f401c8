// Causal attention within each document of packed rows on a CPU, forward and backward, in fp32.
//
// One task is a document and a key head with all query heads that it serves, so that no two tasks write the same
// numbers; a single long document with few key heads leaves cores idle. Queries and keys are taken 32 at a time, which
// keeps the operands of all products in a core's first cache; blocks of keys that no query sees are skipped. As in
// FlashAttention-2 (Dao 2023, arXiv 2307.08691) the backward pass computes the probabilities again, from the
// log-sum-exp of each query's scores. All exponents are of 2, which is cheaper.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int WIDTH = 16, ROWS = 8;  // numbers in a vector; rows of a product whose sums fit the registers
#elif defined(__AVX__)
constexpr int WIDTH = 8, ROWS = 4;
#else
constexpr int WIDTH = 4, ROWS = 8;
#endif
constexpr int BLOCK = 32;
constexpr float LOG2_E = 1.44269504f, LN_2 = 0.693147181f, INF = std::numeric_limits<float>::infinity();

typedef float Floats __attribute__((vector_size(4 * WIDTH)));
typedef uint32_t Integers __attribute__((vector_size(4 * WIDTH)));
using BFloat16 = uint16_t;

struct Shape {
  int64_t rows, heads, key_heads, length, size;
  int window, threads;  // window 0: no limit
  float scale;
};

struct Document {
  int64_t row, start;
  int length;
};

// A tensor [rows, heads, length, size] with contiguous vectors.
template <class T>
struct View {
  T* data;
  const int64_t* strides;

  T* at(int64_t row, int64_t head, int64_t token) const {
    return data + row * strides[0] + head * strides[1] + token * strides[2];
  }
};

// Memory of a thread, kept between tasks.
struct Workspace {
  std::vector<float> memory;
  size_t used = 0;

  void reset(size_t numbers) {
    if (memory.size() < numbers) memory.resize(numbers);
    used = 0;
  }
  float* take(size_t numbers) {
    used += numbers;
    return memory.data() + used - numbers;
  }
};

thread_local Workspace workspace;

int round_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

Floats load(const float* from) {
  Floats x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

void store(Floats x, float* to) { std::memcpy(to, &x, sizeof x); }

float sum(Floats x) {
  float total = 0;
  for (int i = 0; i < WIDTH; i++) total += x[i];
  return total;
}

float widen(float x) { return x; }

float widen(BFloat16 x) {
  const uint32_t bits = uint32_t(x) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

void narrow(float x, float& to) { to = x; }

void narrow(float x, BFloat16& to) {  // to the nearest, and of two to the even one
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  to = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
}

// 2^x for x up to 0, or a rounding error above it, with a relative error of 2e-7: 2^n times the Taylor series of 2^f, |f| <= 1/2.
Floats power_of_2(Floats x) {
  const float shift = 12582912;  // 1.5 * 2^23: what is added to it is rounded to an integer, its lowest bits
  const Floats shifted = x + shift, f = x - (shifted - shift);
  Integers n;
  std::memcpy(&n, &shifted, sizeof n);
  const Integers bits = (n - 0x4B400000 + 127) << 23;
  Floats scale;
  std::memcpy(&scale, &bits, sizeof scale);
  Floats series = f * 1.5403530e-4f + 1.3333558e-3f;
  for (float coefficient : {9.6181291e-3f, 5.5504109e-2f, 0.24022651f, 0.69314718f, 1.f}) series = series * f + coefficient;
  return x < -126.f ? Floats{} : series * scale;
}

// The part of `multiply` whose sums are held in registers: ROWS rows and N vectors of columns.
template <bool TRANSPOSED, bool ADD, int N>
void multiply_tile(int k, const float* a, int a_stride, const float* b, int b_stride, float* c, int c_stride) {
  Floats sums[ROWS][N];
  for (int i = 0; i < ROWS; i++)
    for (int j = 0; j < N; j++) sums[i][j] = ADD ? load(c + i * c_stride + j * WIDTH) : Floats{};
  for (int p = 0; p < k; p++) {
    Floats right[N];
    for (int j = 0; j < N; j++) right[j] = load(b + p * b_stride + j * WIDTH);
    for (int i = 0; i < ROWS; i++) {
      const float left = TRANSPOSED ? a[p * a_stride + i] : a[i * a_stride + p];
      for (int j = 0; j < N; j++) sums[i][j] += left * right[j];
    }
  }
  for (int i = 0; i < ROWS; i++)
    for (int j = 0; j < N; j++) store(sums[i][j], c + i * c_stride + j * WIDTH);
}

// c [m x n] = a [m x k] b [k x n], or with ADD +=; `a` is stored as [k x m] if TRANSPOSED.
// m is a multiple of ROWS, n of WIDTH.
template <bool TRANSPOSED, bool ADD>
void multiply(int m, int n, int k, const float* a, int a_stride, const float* b, int b_stride, float* c, int c_stride) {
  for (int j = 0; j < n; j += 2 * WIDTH) {
    const auto tile = j + WIDTH < n ? multiply_tile<TRANSPOSED, ADD, 2> : multiply_tile<TRANSPOSED, ADD, 1>;
    for (int i = 0; i < m; i += ROWS)
      tile(k, a + i * (TRANSPOSED ? 1 : a_stride), a_stride, b + j, b_stride, c + i * c_stride + j, c_stride);
  }
}

// The vectors of a head at some positions, a task's or a block's: `count` of them, padded by zeros in both directions.
struct Vectors {
  const Document& document;
  int64_t head;
  int begin, count, padded;
  int size, width;  // of a vector

  template <class T>
  void read(View<T> from, float factor, float* to) const {
    for (int i = 0; i < count; i++, to += width) {
      const T* x = from.at(document.row, head, document.start + begin + i);
      for (int j = 0; j < size; j++) to[j] = widen(x[j]) * factor;
      std::fill(to + size, to + width, 0.f);
    }
    std::fill(to, to + (padded - count) * width, 0.f);
  }

  template <class T>
  void write(const float* from, float factor, View<T> to) const {
    for (int i = 0; i < count; i++, from += width) {
      T* x = to.at(document.row, head, document.start + begin + i);
      for (int j = 0; j < size; j++) narrow(from[j] * factor, x[j]);
    }
  }

  // [padded x width] -> [padded / BLOCK x width x BLOCK]; `padded` is a multiple of BLOCK.
  void transpose(const float* from, float* to) const {
    for (int block = 0; block < padded; block += BLOCK, to += BLOCK * width)
      for (int i = 0; i < BLOCK; i++, from += width)
        for (int j = 0; j < width; j++) to[j * BLOCK + i] = from[j];
  }
};

// A block of queries, and the whole blocks of keys that they see: first … end.
struct Block : Vectors {
  int first, end, window;

  Block(const Vectors& keys, int64_t head, int begin, int window) : Vectors(keys), window(window) {
    this->head = head;
    this->begin = begin;
    count = std::min(BLOCK, keys.count - begin);
    padded = round_up(count, ROWS);
    first = window ? std::max(0, begin - window + 1) / BLOCK * BLOCK : 0;
    end = begin + BLOCK;
  }

  // Scores of query i with keys from … to become minus infinity where it does not see them.
  void mask(int i, float* scores, int from, int to) const {
    const int after = begin + std::min(i, count - 1) + 1 - from, before = window ? after - window : 0;
    if (before > 0) std::fill(scores, scores + std::min(before, to - from), -INF);
    if (after < to - from) std::fill(scores + after, scores + to - from, -INF);
  }

  int64_t index(int i, const Shape& shape) const {  // of query i in [rows, length, heads]
    return (document.row * shape.length + document.start + begin + i) * shape.heads + head;
  }
};

// Calls `work(keys, blocks)` for each task on all threads, the longest documents first; `blocks(use)` calls `use` for
// each block of the task's queries.
template <class Work>
void for_each_task(const int64_t* lengths, const Shape& shape, Work work) {
  std::vector<Document> documents;
  for (int64_t start = 0; start < shape.rows * shape.length; start += *lengths++)
    documents.push_back({start / shape.length, start % shape.length, int(*lengths)});
  std::stable_sort(documents.begin(), documents.end(), [](auto& a, auto& b) { return a.length > b.length; });
  const int64_t tasks = int64_t(documents.size()) * shape.key_heads, group = shape.heads / shape.key_heads;
  const int size = shape.size, width = round_up(size, WIDTH);
#pragma omp parallel for schedule(dynamic) num_threads(shape.threads)
  for (int64_t task = 0; task < tasks; task++) {
    const Document& document = documents[task / shape.key_heads];
    const int64_t key_head = task % shape.key_heads;
    const Vectors keys{document, key_head, 0, document.length, round_up(document.length, BLOCK), size, width};
    work(keys, [&](auto use) {
      for (int64_t head = key_head * group; head < (key_head + 1) * group; head++)
        for (int begin = 0; begin < document.length; begin += BLOCK) use(Block(keys, head, begin, shape.window));
    });
  }
}

template <class T>
void forward(View<const T> query, View<const T> key, View<const T> value, View<T> output, float* log_sums,
             const int64_t* lengths, const Shape& shape) {
  for_each_task(lengths, shape, [&](const Vectors& keys, auto for_each_block) {
    const int n = keys.padded, width = keys.width;
    workspace.reset(size_t(n) * (2 * width + BLOCK) + 2 * BLOCK * width);
    float *values = workspace.take(n * width), *keys_t = workspace.take(n * width);
    float *scores = workspace.take(n * BLOCK), *queries = workspace.take(BLOCK * width);
    float* outputs = workspace.take(BLOCK * width);
    keys.read(key, 1, values);
    keys.transpose(values, keys_t);
    keys.read(value, 1, values);
    for_each_block([&](const Block& block) {
      const int m = block.padded, first = block.first, end = block.end;
      block.read(query, shape.scale * LOG2_E, queries);
      for (int at = first; at < end; at += BLOCK)
        multiply<false, false>(m, BLOCK, width, queries, width, keys_t + at * width, BLOCK, scores + at, n);
      float totals[BLOCK];
      for (int i = 0; i < m; i++) {
        float* row = scores + i * n;
        block.mask(i, row + first, first, end);
        Floats highest = Floats{} - INF, total{};
        for (int j = first; j < end; j += WIDTH) {
          const Floats x = load(row + j);
          highest = x > highest ? x : highest;
        }
        float top = highest[0];
        for (int j = 1; j < WIDTH; j++) top = std::max(top, highest[j]);
        for (int j = first; j < end; j += WIDTH) {
          const Floats p = power_of_2(load(row + j) - top);
          total += p;
          store(p, row + j);
        }
        totals[i] = sum(total);
        if (i < block.count) log_sums[block.index(i, shape)] = top + std::log2(totals[i]);
      }
      multiply<false, false>(m, width, end - first, scores + first, n, values + first * width, width, outputs, width);
      for (int i = 0; i < m; i++)
        for (int j = 0; j < width; j++) outputs[i * width + j] /= totals[i];
      block.write(outputs, 1, output);
    });
  });
}

template <class T>
void backward(View<const T> gradient, View<const T> query, View<const T> key, View<const T> value,
              View<const T> output, const float* log_sums, View<T> query_gradient, View<T> key_gradient,
              View<T> value_gradient, const int64_t* lengths, const Shape& shape) {
  for_each_task(lengths, shape, [&](const Vectors& keys, auto for_each_block) {
    const int n = keys.padded, width = keys.width;
    workspace.reset(size_t(n) * 5 * width + BLOCK * (4 * width + 2 * BLOCK));
    float *key_rows = workspace.take(n * width), *keys_t = workspace.take(n * width);
    float *values_t = workspace.take(n * width), *key_sums = workspace.take(n * width);
    float *value_sums = workspace.take(n * width), *queries = workspace.take(BLOCK * width);
    float *gradients = workspace.take(BLOCK * width), *outputs = workspace.take(BLOCK * width);
    float *query_sums = workspace.take(BLOCK * width), *p = workspace.take(BLOCK * BLOCK);
    float* dp = workspace.take(BLOCK * BLOCK);
    keys.read(value, 1, key_rows);
    keys.transpose(key_rows, values_t);
    keys.read(key, 1, key_rows);
    keys.transpose(key_rows, keys_t);
    std::fill(key_sums, key_sums + n * width, 0.f);
    std::fill(value_sums, value_sums + n * width, 0.f);
    for_each_block([&](const Block& block) {
      const int m = block.padded;
      block.read(query, shape.scale * LOG2_E, queries);
      block.read(gradient, 1, gradients);
      block.read(output, 1, outputs);
      float delta[BLOCK], log_sum[BLOCK];  // delta: the mean gradient of a query's probabilities
      for (int i = 0; i < m; i++) {
        Floats total{};
        for (int j = 0; j < width; j += WIDTH) total += load(gradients + i * width + j) * load(outputs + i * width + j);
        delta[i] = sum(total);
        log_sum[i] = i < block.count ? log_sums[block.index(i, shape)] : 0;
      }
      std::fill(query_sums, query_sums + m * width, 0.f);
      for (int at = block.first; at < block.end; at += BLOCK) {
        const int offset = at * width;
        multiply<false, false>(m, BLOCK, width, queries, width, keys_t + offset, BLOCK, p, BLOCK);
        multiply<false, false>(m, BLOCK, width, gradients, width, values_t + offset, BLOCK, dp, BLOCK);
        for (int i = 0; i < m; i++) {
          block.mask(i, p + i * BLOCK, at, at + BLOCK);
          for (int j = i * BLOCK; j < (i + 1) * BLOCK; j += WIDTH) {
            const Floats x = power_of_2(load(p + j) - log_sum[i]);
            store(x, p + j);
            store(x * (load(dp + j) - delta[i]), dp + j);
          }
        }
        multiply<true, true>(BLOCK, width, m, p, BLOCK, gradients, width, value_sums + offset, width);
        multiply<true, true>(BLOCK, width, m, dp, BLOCK, queries, width, key_sums + offset, width);
        multiply<false, true>(m, width, BLOCK, dp, BLOCK, key_rows + offset, width, query_sums, width);
      }
      block.write(query_sums, shape.scale, query_gradient);
    });
    keys.write(key_sums, LN_2, key_gradient);  // LN_2: queries were multiplied by LOG2_E
    keys.write(value_sums, 1, value_gradient);
  });
}

template <class T>
void attend(bool is_backward, void* const* data, const int64_t (*strides)[3], const int64_t* lengths, const Shape& shape) {
  const auto in = [&](int i) { return View<const T>{static_cast<const T*>(data[i]), strides[i]}; };
  const auto out = [&](int i) { return View<T>{static_cast<T*>(data[i]), strides[i]}; };
  if (is_backward)
    backward<T>(in(0), in(1), in(2), in(3), in(4), static_cast<float*>(data[5]), out(6), out(7), out(8), lengths, shape);
  else
    forward<T>(in(0), in(1), in(2), out(3), static_cast<float*>(data[4]), lengths, shape);
}

}  // namespace

// data: addresses of the tensors: forward: query, key, value, output, log-sums;
//   backward: gradient, query, key, value, output, log-sums, gradients of query, key and value.
//   Log-sums are contiguous [rows, length, heads], the others [rows, heads, length, size].
// strides: of each of these tensors in numbers, but for the last dimension, whose stride is 1.
// lengths: of the documents, row after row; their sum is rows * length.
extern "C" void document_attention(int is_backward, int is_bf16, void* const* data, const int64_t (*strides)[3],
                                   const int64_t* lengths, int64_t rows, int64_t heads, int64_t key_heads,
                                   int64_t length, int64_t size, int window, int threads, float scale) {
  const Shape shape{rows, heads, key_heads, length, size, window, threads, scale};
  (is_bf16 ? attend<BFloat16> : attend<float>)(is_backward, data, strides, lengths, shape);
}
