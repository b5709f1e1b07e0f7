package agent

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"tapestry.dev/tapestry/cmd/tapestry/agent/heal"
	"tapestry.dev/tapestry/kube"
)

// healConfig holds the values of the flags about what a node may lose.
type healConfig struct {
	hostTAP   bool // an init step makes the host TAP
	ownPod    kube.Ref
	ownPodUID string
	evict     bool
	after     time.Duration
}

func (c *healConfig) flags() []cli.Flag {
	const category = "What a node has lost"
	return []cli.Flag{
		&cli.BoolFlag{Name: "host-tap", Category: category, Usage: "'tapestry host-tap' runs before the agent: what is missing of what it makes keeps the node from being ready", Destination: &c.hostTAP},
		&cli.StringFlag{Name: "own-pod", Category: category, Usage: "`NAMESPACE/NAME` of the pod that this agent runs in", Action: func(_ *cli.Context, text string) error {
			ns, name, ok := strings.Cut(text, "/")
			if !ok || ns == "" || name == "" {
				return fmt.Errorf("--own-pod %q is not a pod: expected NAMESPACE/NAME", text)
			}
			c.ownPod = kube.Ref{Kind: "Pod", Namespace: ns, Name: name}
			return nil
		}},
		&cli.StringFlag{Name: "own-pod-uid", Category: category, Usage: "`UID` of the pod that this agent runs in", Destination: &c.ownPodUID},
		&cli.BoolFlag{Name: "evict-pods", Category: category, Usage: "evict pods of this node that have lost their network, and the agent's own where its init steps have to run again; needs an API server and the right to create pods/eviction", Destination: &c.evict},
		&cli.DurationFlag{Name: "evict-after", Category: category, Usage: "evict what has been broken for `TIME`", Value: 20 * time.Second, Destination: &c.after},
	}
}

// evicter is a source that can have pods evicted.
type evicter interface {
	Evict(ctx context.Context, pod kube.Ref, uid string) error
}

// newHealer returns what looks after the node.
func (a *agent) newHealer() (*heal.Healer, error) {
	o := heal.Options{
		Node: a.node, OwnPod: a.heal.ownPod, OwnUID: a.heal.ownPodUID, Stepped: a.heal.hostTAP, Doors: []string{a.ingressHTTP, a.ingressHTTPS},
		Follower: a.follower, Pods: a.pods, ByObject: a.agentConfig.source.manifests != "", Keeper: a.kept,
		Mark: filepath.Join(a.state, "whole"), Log: a.log,
	}
	if a.heal.evict {
		source, ok := a.source.source.(evicter)
		if !ok {
			return nil, errors.New("--evict-pods needs an API server, and --manifests uses none: remove one of the two flags")
		}
		o.Evict, o.EvictAfter = source.Evict, a.heal.after
	}
	return heal.New(o), nil
}
