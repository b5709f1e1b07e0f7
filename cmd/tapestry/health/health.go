// Package health reports over HTTP whether a node's network works: to the kubelet, and to load balancers in the same
// way as kube-proxy.
package health

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"tapestry.dev/tapestry/cmd/tapestry/httpserve"
	"tapestry.dev/tapestry/visible"
)

const (
	// checkTime is how long a readiness check may take.
	checkTime = time.Second
	// checkRest is how long results of the checks are reused.
	checkRest = time.Second
	// requestTime limits the time of a request, so that no client holds a connection open for longer.
	requestTime = 10 * time.Second
)

// Check tests one thing that has to work.
type Check struct {
	Name string
	Run  func(ctx context.Context) error
	// Note returns what is worth knowing about a check that succeeded, or "". It may be nil.
	Note func() string
}

// Options are the sources of a Health. All except Now are required.
type Options struct {
	// Alive returns an error if only a restart of the agent would help.
	Alive func() error
	// Eligible returns false while the node is being deleted; load balancers are to send it no traffic then.
	Eligible func() bool
	// Updated returns when a snapshot was last applied to the node; zero before the first.
	Updated func() time.Time
	// Ready are the readiness checks, which run one after the other.
	Ready []Check
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Health serves the health endpoints. Its methods may be called concurrently.
type Health struct {
	opts Options

	mu      sync.Mutex // guards what follows; held while the checks run, so that waiting clients share them
	checked time.Time
	results []error
}

// New returns a Health.
func New(o Options) *Health {
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Health{opts: o}
}

// Handler returns a handler for /healthz (as in kube-proxy), /livez and /readyz.
func (h *Health) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { h.kubeProxy(w, true) })
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { h.kubeProxy(w, false) })
	mux.HandleFunc("GET /readyz", h.readyz)
	return mux
}

// kubeProxy answers as kube-proxy does (KEP-3836). Load balancers in front of the nodes ask /healthz, and must avoid a
// node that is being deleted or has not started. A restart of the agent helps in neither case, so /livez ignores both.
func (h *Health) kubeProxy(w http.ResponseWriter, forTraffic bool) {
	now, updated, eligible := h.opts.Now(), h.opts.Updated(), h.opts.Eligible()
	began := !updated.IsZero()
	alive := h.opts.Alive()
	if alive == nil && began {
		updated = now // nothing waits to be applied, so the state is up to date
	}
	var reply struct {
		LastUpdated  time.Time `json:"lastUpdated"`
		CurrentTime  time.Time `json:"currentTime"`
		NodeEligible bool      `json:"nodeEligible"`
		Error        string    `json:"error,omitempty"`
	}
	reply.LastUpdated, reply.CurrentTime, reply.NodeEligible = updated.UTC(), now.UTC(), eligible
	if alive != nil {
		reply.Error = alive.Error()
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if alive != nil || forTraffic && !(eligible && began) {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_ = json.NewEncoder(w).Encode(reply) // if the client is gone, nobody needs the answer
}

// Missing runs the checks, unless they ran a moment ago, and returns a sentence for each that failed. It returns none
// if the node is ready.
func (h *Health) Missing(ctx context.Context) []string {
	var list []string
	for i, err := range h.run(ctx) {
		if err != nil {
			list = append(list, h.opts.Ready[i].Name+": "+err.Error())
		}
	}
	return list
}

// run returns the results of the checks, in their order. If one fails, those after it do not run, and count as failed
// too.
func (h *Health) run(ctx context.Context) []error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if now := h.opts.Now(); h.results != nil && now.Sub(h.checked) < checkRest {
		return h.results
	}
	results := make([]error, len(h.opts.Ready))
	for i, c := range h.opts.Ready {
		ctx, cancel := context.WithTimeout(ctx, checkTime)
		results[i] = c.Run(ctx)
		cancel()
		if results[i] != nil {
			for j := i + 1; j < len(results); j++ {
				results[j] = errors.New("not checked after a failure of " + c.Name)
			}
			break
		}
	}
	if ctx.Err() == nil { // otherwise the client is gone, and the results mean nothing
		h.results, h.checked = results, h.opts.Now()
	}
	return results
}

// readyz answers in the format of Kubernetes components.
func (h *Health) readyz(w http.ResponseWriter, r *http.Request) {
	var text bytes.Buffer
	status := http.StatusOK
	for i, err := range h.run(r.Context()) {
		if err != nil {
			status = http.StatusServiceUnavailable
			fmt.Fprintf(&text, "[-]%s failed: %s\n", h.opts.Ready[i].Name, visible.Text(err.Error()))
			continue
		}
		fmt.Fprintf(&text, "[+]%s ok", h.opts.Ready[i].Name)
		if note := h.opts.Ready[i].Note; note != nil {
			if said := note(); said != "" { // one call: the next may return ""
				fmt.Fprintf(&text, ": %s", visible.Text(said))
			}
		}
		text.WriteByte('\n')
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write(text.Bytes())
}

// Serve serves h on l until ctx ends, and closes l.
func (h *Health) Serve(ctx context.Context, l net.Listener) error {
	if err := httpserve.Until(ctx, l, h.Handler(), requestTime); err != nil {
		return fmt.Errorf("serve health: %w", err)
	}
	return nil
}
