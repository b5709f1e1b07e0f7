// Package tell writes on a cluster's objects what a node knows: of itself, on its Node, and what is wrong with
// Services and Ingresses, as Events.
package tell

import (
	"context"
	"encoding/json"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/cluster/servers"
	"tapestry.dev/tapestry/visible"
)

// Publisher keeps what this node says of itself on its Node object. It compares what shall be there with what the
// watch says is there, and sends the difference: so what somebody else changed there is put right, and what an API
// server lost is said again.
type Publisher struct {
	node string
	rest rest.Interface
	link *servers.Link
	log  *slog.Logger
	wake chan struct{} // capacity 1

	mu sync.Mutex
	// mu guards the rest.
	desired *kube.NodeStatus
	have    *corev1.Node
}

const (
	// patchEvery is how often a Node is changed at most, after patchBurst at once: somebody else may undo what we
	// do.
	patchEvery = 2 * time.Second
	patchBurst = 4
	// echoTime is how long the watch may take to tell us what we have changed ourselves.
	echoTime = time.Second
	// problemBytes of problems fit into an annotation; all of a Node's together may have 256 KiB.
	problemBytes = 64 << 10
)

// NewPublisher gives a Publisher for the Node of that name.
func NewPublisher(node string, client rest.Interface, l *servers.Link, log *slog.Logger) *Publisher {
	return &Publisher{node: node, rest: client, link: l, log: log, wake: make(chan struct{}, 1)}
}

// Want says what shall be on the Node. It does not block.
func (p *Publisher) Want(s kube.NodeStatus) {
	s.Problems = shorten(s.Problems)
	p.mu.Lock()
	p.desired = &s
	p.mu.Unlock()
	p.touch()
}

// See is told what the API server has; nil: no such Node.
func (p *Publisher) See(n *corev1.Node) {
	p.mu.Lock()
	changed := n != p.have
	p.have = n
	p.mu.Unlock()
	if changed {
		p.touch()
	}
}

func (p *Publisher) touch() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// Run sends what is to be sent, until ctx is done.
func (p *Publisher) Run(ctx context.Context) {
	limit := rate.NewLimiter(rate.Every(patchEvery), patchBurst)
	pause := servers.Pauses()
	var sent patches
	var at time.Time // when they were sent
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.wake:
		}
		p.mu.Lock()
		have, desired := p.have, p.desired
		p.mu.Unlock()
		if have == nil || desired == nil {
			continue
		}
		next := patchesFor(have, desired)
		if next.empty() {
			continue
		}
		if wait := echoTime - time.Since(at); wait > 0 && next.drop(&sent) { // what the watch tells may be of before
			time.AfterFunc(wait, p.touch)
			if next.empty() {
				continue
			}
		}
		if limit.Wait(ctx) != nil {
			return
		}
		node, err := p.send(ctx, &next)
		if err != nil {
			if ctx.Err() == nil {
				p.log.Error("other nodes will not learn what this one says of itself", "err", err)
			}
			if !servers.Sleep(ctx, pause.Step()) {
				return
			}
			p.touch()
			continue
		}
		sent, at, pause = next, time.Now(), servers.Pauses()
		p.mu.Lock()
		if p.have == have { // the watch has told nothing new meanwhile
			p.have = node
		}
		p.mu.Unlock()
		p.touch()
	}
}

// patches are two because a status is a resource of its own.
type patches struct {
	annotations map[string]*string // nil removes
	condition   *corev1.NodeCondition
}

func (p *patches) empty() bool { return len(p.annotations) == 0 && p.condition == nil }

// drop takes out of p what is in q, too, and reports whether there was any.
func (p *patches) drop(q *patches) (dropped bool) {
	for key, value := range p.annotations {
		if known, there := q.annotations[key]; there && (value == nil) == (known == nil) && (value == nil || *value == *known) {
			delete(p.annotations, key)
			dropped = true
		}
	}
	if p.condition != nil && q.condition != nil && *p.condition == *q.condition {
		p.condition, dropped = nil, true
	}
	return dropped
}

// patchesFor gives what has to be said so that have says s. Times are left out.
func patchesFor(have *corev1.Node, s *kube.NodeStatus) patches {
	var p patches
	annotations := s.Annotations()
	for _, key := range kube.StatusAnnotations {
		value, wanted := annotations[key]
		now, there := have.Annotations[key]
		if wanted == there && value == now {
			continue
		}
		if p.annotations == nil {
			p.annotations = map[string]*string{}
		}
		if p.annotations[key] = nil; wanted {
			p.annotations[key] = &value
		}
	}
	if !s.Ready && s.Reason == "" {
		return p
	}
	want := condition(s)
	i := slices.IndexFunc(have.Status.Conditions, func(c corev1.NodeCondition) bool { return c.Type == want.Type })
	if i >= 0 {
		now := have.Status.Conditions[i]
		if now.LastHeartbeatTime, now.LastTransitionTime = want.LastHeartbeatTime, want.LastTransitionTime; now == want {
			return p
		}
	}
	p.condition = &want
	return p
}

// condition is what a node's NetworkUnavailable has to be; while it is true nothing is scheduled there.
func condition(s *kube.NodeStatus) corev1.NodeCondition {
	if s.Ready {
		return corev1.NodeCondition{
			Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionFalse, Reason: "TapestryIsReady", Message: "pods of this node are connected",
		}
	}
	return corev1.NodeCondition{
		Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionTrue, Reason: "TapestryIsNotReady", Message: visible.Text(s.Reason),
	}
}

// send gives the Node as it is after that.
func (p *Publisher) send(ctx context.Context, next *patches) (*corev1.Node, error) {
	node := &corev1.Node{}
	if len(next.annotations) > 0 {
		data, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": next.annotations}})
		if err != nil {
			return nil, err
		}
		err = p.link.Do(ctx, func() error {
			return p.rest.Patch(types.MergePatchType).AbsPath("/api/v1", "nodes", p.node).Body(data).Do(ctx).Into(node)
		})
		if err != nil || next.condition == nil {
			return node, err
		}
	}
	c := *next.condition
	c.LastTransitionTime = metav1.Now()
	c.LastHeartbeatTime = c.LastTransitionTime
	data, err := json.Marshal(map[string]any{"status": map[string]any{"conditions": []corev1.NodeCondition{c}}})
	if err != nil {
		return nil, err
	}
	node = &corev1.Node{}
	return node, p.link.Do(ctx, func() error {
		return p.rest.Patch(types.StrategicMergePatchType).AbsPath("/api/v1", "nodes", p.node, "status").Body(data).Do(ctx).Into(node)
	})
}

// shorten cuts a list that would not fit.
func shorten(list []kube.Problem) []kube.Problem {
	if fitting(list) == len(list) {
		return list
	}
	list = inTurns(list)
	more := kube.Problem{Severity: kube.Warning, Object: kube.Ref{Kind: "Node"}, Message: "there are more problems than fit here: ask the agent for all of them"}
	return append(list[:fitting(list):fitting(list)], more)
}

// fitting gives how many of the problems fit.
func fitting(list []kube.Problem) int {
	size := 0
	for i := range list {
		data, _ := json.Marshal(list[i]) // strings alone
		if size += len(data) + 1; size > problemBytes {
			return i
		}
	}
	return len(list)
}
