-- What wrk measured, on a line of its own. Nothing here runs per request.
done = function(summary, latency, requests)
  local e = summary.errors
  io.write("\nsummary ", string.format(
    '{"duration": %.0f, "requests": %.0f, ' ..
    '"latency": {"min": %.0f, "mean": %f, "p50": %.0f, "p90": %.0f, "p99": %.0f, "p999": %.0f, "max": %.0f}, ' ..
    '"errors": {"connect": %d, "read": %d, "write": %d, "status": %d, "timeout": %d}}',
    summary.duration, summary.requests,
    latency.min, latency.mean, latency:percentile(50), latency:percentile(90), latency:percentile(99),
    latency:percentile(99.9), latency.max,
    e.connect, e.read, e.write, e.status, e.timeout), "\n")
end
