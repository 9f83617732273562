// The server's own calls behind a C ABI: tensorflow::LoadSavedModel and Session::Run with textual tensor names.
//
// TF Serving loads a model with LoadSavedModel (servables/tensorflow/saved_model_bundle_factory.cc), turns each request
// tensor into a Tensor with Tensor::FromProto and calls Session::Run with names (servables/tensorflow/predict_util.cc).
// This file does exactly that and no more, so that the executor cache sees what it sees in production. Every call
// returns one wt_reply, which the caller frees; no exception and no TensorFlow type crosses the boundary.

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "absl/log/globals.h"
#include "tensorflow/c/c_api.h"
#include "tensorflow/cc/saved_model/loader.h"
#include "tensorflow/core/framework/tensor.h"
#include "tensorflow/core/framework/tensor.pb.h"
#include "xla/tsl/lib/monitoring/collection_registry.h"
#include "tensorflow/core/public/session.h"
#include "tensorflow/core/public/session_options.h"

extern "C" {

struct wt_bytes {
  const char* data;
  size_t size;
};

struct wt_reply {
  int32_t code;       // absl::StatusCode, the same numbers as gRPC's
  int32_t bad_feed;   // place of the feed that Tensor::FromProto refused, -1 if none
  double seconds;     // wall time of the TensorFlow call alone
  wt_bytes message;
  size_t count;
  const wt_bytes* blobs;
};

}  // extern "C"

namespace {

struct Reply : wt_reply {
  std::string text;
  std::vector<std::string> strings;
  std::vector<wt_bytes> views;

  Reply() : wt_reply{0, -1, 0.0, {nullptr, 0}, 0, nullptr} {}

  wt_reply* Seal(const absl::Status& status) {
    code = static_cast<int32_t>(status.code());
    text = std::string(status.message());
    message = {text.data(), text.size()};
    views.reserve(strings.size());
    for (const std::string& s : strings) views.push_back({s.data(), s.size()});
    count = views.size();
    blobs = views.data();
    return this;
  }
};

class Stopwatch {
 public:
  explicit Stopwatch(double* out) : out_(out), start_(std::chrono::steady_clock::now()) {}
  ~Stopwatch() { *out_ = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }

 private:
  double* out_;
  std::chrono::steady_clock::time_point start_;
};

std::string Text(const wt_bytes& b) { return std::string(b.data, b.size); }

}  // namespace

extern "C" {

void wt_free(wt_reply* reply) { delete static_cast<Reply*>(reply); }

const char* wt_version() { return TF_Version(); }

// Without this TensorFlow writes several lines to stderr before anybody could have asked for them.
void wt_quiet() { absl::SetMinLogLevel(absl::LogSeverityAtLeast::kFatal); }

// Loads the MetaGraph that has exactly these tags. The blobs of the reply are pairs: signature name, SignatureDef.
wt_reply* wt_open(wt_bytes dir, const wt_bytes* tags, size_t n_tags, void** session) {
  auto* reply = new Reply;
  *session = nullptr;
  std::unordered_set<std::string> tag_set;
  for (size_t i = 0; i < n_tags; ++i) tag_set.insert(Text(tags[i]));
  auto bundle = std::make_unique<tensorflow::SavedModelBundleLite>();
  absl::Status status;
  {
    Stopwatch watch(&reply->seconds);
    status = tensorflow::LoadSavedModel(tensorflow::SessionOptions(), tensorflow::RunOptions(), Text(dir), tag_set,
                                        bundle.get());
  }
  if (status.ok()) {
    for (const auto& [name, signature] : bundle->GetSignatures()) {
      reply->strings.push_back(name);
      reply->strings.push_back(signature.SerializeAsString());
    }
    *session = bundle.release();
  }
  return reply->Seal(status);
}

void wt_close(void* session) { delete static_cast<tensorflow::SavedModelBundleLite*>(session); }

// One Session::Run. `protos[i]` is the serialized TensorProto fed to `feeds[i]`. With `values` the blobs of the reply
// are the fetched tensors as serialized TensorProto, values in the typed fields as TF Serving answers by default.
wt_reply* wt_run(void* session, size_t n_feeds, const wt_bytes* feeds, const wt_bytes* protos, size_t n_fetches,
                 const wt_bytes* fetches, int32_t values) {
  auto* reply = new Reply;
  std::vector<std::pair<std::string, tensorflow::Tensor>> inputs;
  inputs.reserve(n_feeds);
  for (size_t i = 0; i < n_feeds; ++i) {
    tensorflow::TensorProto proto;
    tensorflow::Tensor tensor;
    if (!proto.ParseFromArray(protos[i].data, static_cast<int>(protos[i].size)) || !tensor.FromProto(proto)) {
      reply->bad_feed = static_cast<int32_t>(i);
      return reply->Seal(absl::InvalidArgumentError("tensor parsing error: " + Text(feeds[i])));
    }
    inputs.emplace_back(Text(feeds[i]), std::move(tensor));
  }
  std::vector<std::string> names;
  names.reserve(n_fetches);
  for (size_t i = 0; i < n_fetches; ++i) names.push_back(Text(fetches[i]));
  std::vector<tensorflow::Tensor> outputs;
  absl::Status status;
  {
    Stopwatch watch(&reply->seconds);
    status = static_cast<tensorflow::SavedModelBundleLite*>(session)->GetSession()->Run(inputs, names, {}, &outputs);
  }
  if (status.ok() && values != 0) {
    reply->strings.reserve(outputs.size());
    for (const tensorflow::Tensor& tensor : outputs) {
      tensorflow::TensorProto proto;
      tensor.AsProtoField(&proto);
      reply->strings.push_back(proto.SerializeAsString());
    }
  }
  return reply->Seal(status);
}

// Every integer metric of the process, one blob a point: "name\tlabel=value,...\tvalue". With `only` just that metric.
wt_reply* wt_metrics(wt_bytes only) {
  auto* reply = new Reply;
  const std::string wanted = Text(only);
  tsl::monitoring::CollectionRegistry::CollectMetricsOptions options;
  options.collect_metric_descriptors = false;
  const auto collected = tsl::monitoring::CollectionRegistry::Default()->CollectMetrics(options);
  for (const auto& [name, set] : collected->point_set_map) {
    if (!wanted.empty() && name != wanted) continue;
    for (const auto& point : set->points) {
      if (point->value_type != tsl::monitoring::ValueType::kInt64) continue;
      std::string line = name + "\t";
      for (size_t i = 0; i < point->labels.size(); ++i) {
        line += (i ? "," : "") + point->labels[i].name + "=" + point->labels[i].value;
      }
      reply->strings.push_back(line + "\t" + std::to_string(point->int64_value));
    }
  }
  return reply->Seal(absl::OkStatus());
}

// Registers the ops and kernels of a shared library, as the server does for custom ops.
wt_reply* wt_load_library(const char* path) {
  auto* reply = new Reply;
  TF_Status* status = TF_NewStatus();
  TF_LoadLibrary(path, status);
  absl::Status result(static_cast<absl::StatusCode>(TF_GetCode(status)), TF_Message(status));
  TF_DeleteStatus(status);
  return reply->Seal(result);
}

}  // extern "C"
