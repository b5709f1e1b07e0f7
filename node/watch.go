package node

import (
	"cmp"
	"slices"
	"sync/atomic"
	"time"

	"tapestry.dev/tapestry/balance"
	"tapestry.dev/tapestry/counter"
	"tapestry.dev/tapestry/netstack"
	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/roll"
	"tapestry.dev/tapestry/services"
	"tapestry.dev/tapestry/services/latency"
	"tapestry.dev/tapestry/services/nodeport"
)

// watch hears how connections to the backends of Services go, from the packet path and from node ports. It keeps the
// Loads by which backends are chosen, and the times that are shown.
type watch struct {
	table func() *services.Table
	loads *balance.Loads
	meter *latency.Meter
	// known are the Services of the Table before, to see whether their names have changed. Only set uses them.
	known roll.List[*services.Service]
}

func newWatch(table func() *services.Table, loads *balance.Loads, named int) *watch {
	return &watch{table: table, loads: loads, meter: latency.New(cmp.Or(named, latency.Limit))}
}

var _ netstack.Watcher = (*watch)(nil)

// set says that there is a new Table.
func (w *watch) set(t *services.Table) {
	list, before := t.Services(), w.known
	w.known = list
	changed, same := roll.Replaced(before, list)
	if same && !slices.ContainsFunc(changed, func(i int) bool {
		a, b := before.At(i), list.At(i)
		return a.Name != b.Name || a.Namespace != b.Namespace
	}) {
		return
	}
	names := make([]latency.Name, list.Len())
	for i, s := range list.All() {
		names[i] = latency.Name{Namespace: s.Namespace, Name: s.Name}
	}
	w.meter.Set(names)
}

// Begun implements netstack.Watcher.
func (w *watch) Begun(t *packet.Tuple, ref uint32) {
	if h := w.series(w.table().ServiceAt(t)); h != nil {
		w.meter.Begun(ref, h, w.loads.Now())
	}
}

// Changed implements netstack.Watcher.
func (w *watch) Changed(c flow.Change) {
	var load *balance.Load
	if c.Kind&netstack.Counted != 0 {
		if load = w.loads.Find(c.Backend); load == nil && c.Was == 0 {
			load = w.loads.FindOrMake(c.Backend) // of a flow that an earlier agent began
		}
		if load != nil {
			load.Add(c.Open(), c.Waiting())
		}
	}
	switch {
	case c.Answered():
		now := w.loads.Now()
		if took, ok := w.meter.Answered(c.Ref, now); ok && load != nil {
			load.Observe(took, now)
		}
	case c.Refused() && load != nil:
		load.Refused(w.loads.Now())
	}
}

// series returns the times of a Service; nil for no Service.
func (w *watch) series(s *services.Service) *counter.Histogram {
	if s == nil {
		return nil
	}
	return w.meter.Of(latency.Name{Namespace: s.Namespace, Name: s.Name})
}

// begin is nodeport.Options.Begin.
func (w *watch) begin(t *packet.Tuple, c packet.Choice) nodeport.Use {
	u := &use{watch: w, began: w.loads.Now(), series: w.series(w.table().ServiceOnHost(t))}
	if c.Counted {
		if u.load = w.loads.Find(c.Backend); u.load != nil {
			u.load.Begin()
		}
	}
	return u
}

// use is one conversation through a node port.
type use struct {
	*watch
	began  time.Duration
	series *counter.Histogram // nil: a hostPort's
	load   *balance.Load      // nil: not counted
	stage  stage
}

// stage is how far a conversation is: its end and its first answer may come at once, and each counts once.
type stage struct{ atomic.Uint32 }

const (
	waits uint32 = iota
	goesOn
	ended
)

// answered reports whether this answer is the first, and comes before the end.
func (s *stage) answered() bool { return s.CompareAndSwap(waits, goesOn) }

// end ends the conversation. It returns whether there was an answer before.
func (s *stage) end() bool { return s.Swap(ended) == goesOn }

// Answered implements nodeport.Use.
func (u *use) Answered() {
	if !u.stage.answered() {
		return
	}
	now := u.loads.Now()
	if u.series != nil {
		u.series.Observe((now - u.began).Seconds())
	}
	if u.load != nil {
		u.load.Answered(now-u.began, now)
	}
}

// Resumed implements nodeport.Use.
func (u *use) Resumed() {
	if u.stage.answered() && u.load != nil {
		u.load.Add(0, -1)
	}
}

// Refused implements nodeport.Use.
func (u *use) Refused() {
	if u.load != nil {
		u.load.Refused(u.loads.Now())
	}
}

// End implements nodeport.Use.
func (u *use) End() {
	if u.load != nil {
		u.load.End(u.stage.end())
	}
}

// others is the label of all Services that are not told apart.
const others = "(others)"

func (w *watch) counters() counter.List {
	labels := []string{"namespace", "service"}
	times := counter.Counter{
		Name: "tapestry_service_answer_seconds", Kind: counter.Distribution, Labels: labels,
		Help: "Time from the first packet to a backend of a Service until its first answer, as this node saw both; a refusal is none.",
	}
	endpoints := counter.Counter{
		Name: "tapestry_service_endpoints", Kind: counter.Gauge, Labels: []string{"namespace", "service", "state"},
		Help: "Endpoints of a Service: ready, or serving while they end (terminating), or neither (unready).",
	}
	own := map[latency.Name]bool{}
	names := w.meter.Names()
	for _, n := range names {
		own[n] = true
	}
	counts := map[latency.Name]*[3]int{{}: {}}
	for _, s := range w.table().Services().All() {
		n := latency.Name{Namespace: s.Namespace, Name: s.Name}
		if !own[n] {
			n = latency.Name{}
		}
		if counts[n] == nil {
			counts[n] = new([3]int)
		}
		for e := range s.All() {
			counts[n][stateOf(s, e)]++
		}
	}
	for _, n := range append(names, latency.Name{}) {
		shown := []string{n.Namespace, n.Name}
		if n == (latency.Name{}) {
			shown = []string{others, others}
		}
		times.Values = append(times.Values, w.meter.Of(n).Value(shown...))
		if c := counts[n]; c != nil {
			for i, state := range endpointStates {
				endpoints.Values = append(endpoints.Values, counter.Value{Labels: append(shown[:2:2], state), N: float64(c[i])})
			}
		}
	}
	return counter.List{endpoints, times}
}

var endpointStates = [...]string{"ready", "terminating", "unready"}

// stateOf returns the index of an endpoint's state in endpointStates.
func stateOf(s *services.Service, e *services.Endpoint) int {
	switch {
	case e.Ready || s.PublishNotReady:
		return 0
	case e.Serving && e.Terminating:
		return 1
	}
	return 2
}
