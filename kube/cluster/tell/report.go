package tell

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/cluster/servers"
	"tapestry.dev/tapestry/visible"
)

// Reporter writes Events: problems with objects that the API server has accepted appear where the author of the
// object looks for them. An Event's name is a hash of its content, so there is one Event for a problem, however many
// agents report it and however often they start.
type Reporter struct {
	controller, node string

	rest rest.Interface
	link *servers.Link
	log  *slog.Logger
	wake chan struct{} // capacity 1

	mu sync.Mutex
	// mu guards the rest.
	events map[string]*corev1.Event // all that should exist, by name
}

const (
	// Events are sent at most every eventEvery, after eventBurst at once.
	eventEvery = 200 * time.Millisecond
	eventBurst = 25
	// eventRenewal is when problems that still exist are reported again: an API server forgets Events after an hour.
	eventRenewal = 50 * time.Minute
	// mostEvents is how many Events a node reports at a time.
	mostEvents = 500
)

// NewReporter returns a Reporter for a process: the controller of that name, like "tapestry.dev/agent", on the node, or
// of the identity, of that name.
func NewReporter(controller, node string, client rest.Interface, l *servers.Link, log *slog.Logger) *Reporter {
	return &Reporter{controller: controller, node: node, rest: client, link: l, log: log, wake: make(chan struct{}, 1)}
}

// Want sets the problems to report. shared holds those that every agent finds: the first node reports them. own holds
// those that only this node reports. Want does not block.
func (r *Reporter) Want(objs *kube.Objects, shared, own []kube.Problem) {
	list := own
	events := map[string]*corev1.Event{}
	if firstAgent(objs.Nodes) == r.node {
		list = append(slices.Clone(own), shared...)
	}
	for _, p := range inTurns(list) {
		if e := r.event(objs, p); e != nil && len(events) < mostEvents {
			events[e.Name] = e
		}
	}
	r.mu.Lock()
	r.events = events
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// inTurns returns the problems in turns of one for each namespace, so that the many problems of one namespace do not
// keep those of others from being reported.
func inTurns(list []kube.Problem) []kube.Problem {
	type turn struct {
		kube.Problem
		n int // its number in its namespace
	}
	told := map[string]int{}
	turns := make([]turn, len(list))
	for i, p := range list {
		turns[i] = turn{p, told[p.Object.Namespace]}
		told[p.Object.Namespace]++
	}
	slices.SortStableFunc(turns, func(a, b turn) int { return cmp.Compare(a.n, b.n) })
	out := make([]kube.Problem, len(turns))
	for i := range turns {
		out[i] = turns[i].Problem
	}
	return out
}

// firstAgent returns the first of the nodes that run an agent: its agent speaks for all.
func firstAgent(nodes []*corev1.Node) string {
	for _, n := range nodes {
		if n.Annotations[kube.PublicKeyAnnotation] != "" && n.Annotations[kube.StockAnnotation] != "true" {
			return n.Name
		}
	}
	return ""
}

// event returns nil for a problem with an object that is not there, and for one with a Node: Nodes have no author, and
// show by themselves what is wrong with them.
func (r *Reporter) event(objs *kube.Objects, p kube.Problem) *corev1.Event {
	if p.Object.Kind == "Node" {
		return nil
	}
	obj := objs.Find(p.Object) // of Pods an agent knows those of its own node
	if obj == nil || obj.GetUID() == "" {
		return nil
	}
	message := p.Message
	if p.Field != "" {
		message = p.Field + ": " + message
	}
	if p.Reason == kube.PortNotServed { // each node's port is its own matter, also where two say the same
		message = "node " + r.node + ": " + message
	}
	return r.newEvent(reference(p.Object, obj.GetUID()), "NotServed", message)
}

func reference(ref kube.Ref, uid types.UID) corev1.ObjectReference {
	return corev1.ObjectReference{
		Kind: ref.Kind, APIVersion: kube.KindNamed(ref.Kind).Group.Version, Namespace: ref.Namespace, Name: ref.Name, UID: uid,
	}
}

func (r *Reporter) newEvent(object corev1.ObjectReference, reason, message string) *corev1.Event {
	message = visible.Text(message)
	h := fnv.New64a()
	fmt.Fprintf(h, "%s/%s/%s/%s", object.Kind, object.UID, reason, message)
	return &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Namespace: cmp.Or(object.Namespace, metav1.NamespaceDefault), Name: fmt.Sprintf("%.200s.%016x", object.Name, h.Sum64())},
		InvolvedObject: object, Reason: reason, Message: fmt.Sprintf("%.1000s", message), Type: corev1.EventTypeWarning, Count: 1,
		Source:              corev1.EventSource{Component: "tapestry", Host: r.node},
		ReportingController: r.controller, ReportingInstance: r.node,
	}
}

// Run sends the Events until ctx is done.
func (r *Reporter) Run(ctx context.Context) {
	limit := rate.NewLimiter(rate.Every(eventEvery), eventBurst)
	renew := time.NewTicker(eventRenewal)
	defer renew.Stop()
	told := map[string]bool{}
	complained := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-renew.C:
			clear(told)
		case <-r.wake:
		}
		r.mu.Lock()
		events := r.events
		r.mu.Unlock()
		for name := range told {
			if events[name] == nil {
				delete(told, name) // if it comes back, it is reported again
			}
		}
		for name, e := range events {
			if told[name] {
				continue
			}
			if limit.Wait(ctx) != nil {
				return
			}
			told[name] = true
			err := r.tell(ctx, e)
			if ctx.Err() != nil {
				return
			}
			if err != nil && err.Error() != complained {
				complained = err.Error()
				r.log.Warn("a problem cannot be reported as an Event on its object", "object", e.InvolvedObject.Kind+" "+e.Namespace+"/"+e.InvolvedObject.Name, "err", err)
			}
		}
	}
}

// tell creates an Event, or renews the existing one.
func (r *Reporter) tell(ctx context.Context, e *corev1.Event) error {
	out := *e
	out.FirstTimestamp = metav1.Now()
	out.LastTimestamp = out.FirstTimestamp
	path := "/api/v1/namespaces/" + e.Namespace
	return r.link.Do(ctx, func() error {
		err := r.rest.Post().AbsPath(path, "events").Body(&out).Do(ctx).Error()
		if !apierrors.IsAlreadyExists(err) {
			return err
		}
		data, err := json.Marshal(map[string]any{"lastTimestamp": out.LastTimestamp})
		if err != nil {
			return err
		}
		return r.rest.Patch(types.MergePatchType).AbsPath(path, "events", e.Name).Body(data).Do(ctx).Error()
	})
}
