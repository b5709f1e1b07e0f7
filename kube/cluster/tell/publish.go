// Package tell writes what a node knows on objects of the cluster: its own state on its Node, and problems of Services,
// Ingresses and EndpointSlices as Events.
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

// Publisher keeps its node's state on the Node object. It compares the desired state with what the watch shows, and
// sends the difference. So it corrects what somebody else changed, and repeats what an API server lost.
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
	// A Node is changed at most every patchEvery, after patchBurst changes at once: somebody else may keep undoing
	// the changes.
	patchEvery = 2 * time.Second
	patchBurst = 4
	// echoTime is how long the watch may take to show this agent's own change.
	echoTime = time.Second
	// problemBytes limits the problems in an annotation. All annotations of a Node together may have 256 KiB.
	problemBytes = 64 << 10
)

// NewPublisher returns a Publisher for the Node of that name.
func NewPublisher(node string, client rest.Interface, l *servers.Link, log *slog.Logger) *Publisher {
	return &Publisher{node: node, rest: client, link: l, log: log, wake: make(chan struct{}, 1)}
}

// Want sets the state that the Node should show. It does not block.
func (p *Publisher) Want(s kube.NodeStatus) {
	s.Problems = shorten(s.Problems)
	p.mu.Lock()
	p.desired = &s
	p.mu.Unlock()
	p.touch()
}

// See sets the Node as the API server has it, nil when there is no such Node.
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

// Run sends the changes until ctx is done.
func (p *Publisher) Run(ctx context.Context) {
	limit := rate.NewLimiter(rate.Every(patchEvery), patchBurst)
	pause := servers.Pauses()
	var sent patches
	var at time.Time // when sent was sent
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
		if wait := echoTime - time.Since(at); wait > 0 && next.drop(&sent) { // the watch may lag
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
		if p.have == have { // the watch has shown nothing new meanwhile
			p.have = node
		}
		p.mu.Unlock()
		p.touch()
	}
}

// patches holds the changes of a Node. They are two requests, because the status is a subresource.
type patches struct {
	annotations map[string]*string // a nil value removes the annotation
	condition   *corev1.NodeCondition
}

func (p *patches) empty() bool { return len(p.annotations) == 0 && p.condition == nil }

// drop removes from p what is also in q, and reports whether it removed anything.
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

// patchesFor returns the changes after which have shows s. It ignores the times in conditions.
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

// condition returns the condition NetworkUnavailable for s. While it is true, nothing is scheduled on the node.
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

// send sends the patches and returns the Node as it is afterwards.
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

// shorten cuts a list of problems that would not fit into the annotation.
func shorten(list []kube.Problem) []kube.Problem {
	if fitting(list) == len(list) {
		return list
	}
	list = inTurns(list)
	more := kube.Problem{Severity: kube.Warning, Object: kube.Ref{Kind: "Node"}, Message: "there are more problems than fit here: ask the agent for all of them"}
	return append(list[:fitting(list):fitting(list)], more)
}

// fitting returns how many of the problems fit into the annotation.
func fitting(list []kube.Problem) int {
	size := 0
	for i := range list {
		data, _ := json.Marshal(list[i]) // cannot fail: only strings
		if size += len(data) + 1; size > problemBytes {
			return i
		}
	}
	return len(list)
}
