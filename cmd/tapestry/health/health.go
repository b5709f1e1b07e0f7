// Package health answers, over HTTP, whether one node's network works: to kubelet, and to load balancers as kube-proxy
// does.
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
	// checkTime is how long a check of readiness may take.
	checkTime = time.Second
	// checkRest is how long its result is given to others who ask.
	checkRest = time.Second
	// requestTime bounds a request, so that nobody holds a connection open for longer.
	requestTime = 10 * time.Second
)

// Check is one thing that has to work.
type Check struct {
	Name string
	Run  func(ctx context.Context) error
}

// Options say what the endpoints tell. All but Now are required.
type Options struct {
	// Alive says what only a restart of the agent would help against; nil when nothing is wrong.
	Alive func() error
	// Eligible is false while the node is being deleted: load balancers are to send nothing here.
	Eligible func() bool
	// Updated is when the node was brought up to date last; zero before the first time.
	Updated func() time.Time
	// Ready are the checks of readiness, run one after the other.
	Ready []Check
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Health is what the endpoints tell. Its methods may be called concurrently.
type Health struct {
	opts Options

	mu      sync.Mutex // guards what follows; held while the checks run, so that they run once for all who wait
	checked time.Time
	results []error
}

// New makes a Health.
func New(o Options) *Health {
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Health{opts: o}
}

// Handler serves /healthz (kube-proxy's), /livez and /readyz.
func (h *Health) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { h.kubeProxy(w, true) })
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { h.kubeProxy(w, false) })
	mux.HandleFunc("GET /readyz", h.readyz)
	return mux
}

// kubeProxy answers as kube-proxy does (KEP-3836): load balancers in front of the nodes ask /healthz, and are to leave
// out a node that goes or has not begun. A restart helps against neither.
func (h *Health) kubeProxy(w http.ResponseWriter, forTraffic bool) {
	now, updated, eligible := h.opts.Now(), h.opts.Updated(), h.opts.Eligible()
	began := !updated.IsZero()
	alive := h.opts.Alive()
	if alive == nil && began {
		updated = now // nothing waits to be applied, so the state is that of now
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
	_ = json.NewEncoder(w).Encode(reply) // a client that is gone has lost interest
}

// Missing runs the checks, unless that was done just now, and gives a sentence for each that failed; none when the
// node is ready.
func (h *Health) Missing(ctx context.Context) []string {
	var list []string
	for i, err := range h.run(ctx) {
		if err != nil {
			list = append(list, h.opts.Ready[i].Name+": "+err.Error())
		}
	}
	return list
}

// run gives the results of the checks, in their order. When one fails, those after it are not run and fail, too.
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
				results[j] = errors.New("not looked at before " + c.Name)
			}
			break
		}
	}
	if ctx.Err() == nil { // else whoever asked went away, and the results are about nothing
		h.results, h.checked = results, h.opts.Now()
	}
	return results
}

// readyz answers as the components of Kubernetes do.
func (h *Health) readyz(w http.ResponseWriter, r *http.Request) {
	var text bytes.Buffer
	status := http.StatusOK
	for i, err := range h.run(r.Context()) {
		if err != nil {
			status = http.StatusServiceUnavailable
			fmt.Fprintf(&text, "[-]%s failed: %s\n", h.opts.Ready[i].Name, visible.Text(err.Error()))
			continue
		}
		fmt.Fprintf(&text, "[+]%s ok\n", h.opts.Ready[i].Name)
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
