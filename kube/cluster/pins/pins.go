// Package pins decides whose WireGuard key is believed, where nothing guards who may write it.
package pins

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/cluster/servers"
)

// Pins are the WireGuard keys that are believed. Make them with Open. A Node object's key is believed when it is
// seen first, for the life of the object (its UID). Another one is believed while the admission policy is in force
// that lets nobody's token but that node's own agent change it; else the first stays in use, and the change is a
// Problem. An agent may delete no Node, so whoever deletes one is a person who may decide it, and the object that
// comes after begins anew.
type Pins struct {
	file  string
	known map[string]pin // by the Node's name

	// The last answer, for the same question.
	nodes    []*corev1.Node
	guarded  bool
	judged   []*corev1.Node
	problems []kube.Problem
	copies   map[*corev1.Node]*corev1.Node // with the key that is believed in the place of the one that is said
	unsaved  bool
}

// Guard is the name of the ValidatingAdmissionPolicyBinding that keeps agents from changing other Nodes than their
// own.
const Guard = "tapestry-agent-own-node"

type pin struct {
	UID types.UID `json:"uid"`
	Key string    `json:"key"`
}

// Open reads the keys that were believed before out of a file, in which they are kept.
func Open(file string) (*Pins, error) {
	p := &Pins{file: file, known: map[string]pin{}}
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return p, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &p.known)
	}
	if err != nil { // to forget the keys in silence would be what an attacker wishes for
		return nil, fmt.Errorf("read the keys of other nodes: %w: repair or remove %s; removed, each node's key is believed as it is now", err, file)
	}
	return p, nil
}

// Judge gives the nodes with the keys that are believed, and adds to problems where those are not what the API
// server says.
func (p *Pins) Judge(nodes []*corev1.Node, guarded bool, problems *[]kube.Problem) []*corev1.Node {
	if !kube.Same(p.nodes, nodes) || p.guarded != guarded || p.unsaved || p.judged == nil {
		p.nodes, p.guarded, p.problems = nodes, guarded, nil
		p.judged = p.look(nodes)
	}
	*problems = append(*problems, p.problems...)
	return p.judged
}

func (p *Pins) look(nodes []*corev1.Node) []*corev1.Node {
	next := make(map[string]pin, len(nodes))
	copies := map[*corev1.Node]*corev1.Node{}
	list := nodes
	for i, n := range nodes {
		said := n.Annotations[kube.PublicKeyAnnotation]
		believed, pinned := p.known[n.Name]
		switch {
		case !pinned || believed.UID != n.UID || p.guarded && said != "":
			if said == "" {
				continue
			}
			believed = pin{n.UID, said}
		case said != believed.Key && !p.guarded:
			if len(copies) == 0 {
				list = append([]*corev1.Node{}, nodes...)
			}
			copies[n] = p.with(n, believed.Key)
			list[i] = copies[n]
			p.refuse(n, said)
		}
		next[n.Name] = believed
	}
	p.copies = copies
	if p.unsaved || !maps.Equal(next, p.known) {
		p.known = next
		p.save()
	}
	return list
}

// with gives n with another key; always the same copy for the same node.
func (p *Pins) with(n *corev1.Node, key string) *corev1.Node {
	if c := p.copies[n]; c != nil && c.Annotations[kube.PublicKeyAnnotation] == key {
		return c
	}
	c := *n
	c.Annotations = maps.Clone(n.Annotations)
	if c.Annotations == nil {
		c.Annotations = map[string]string{}
	}
	c.Annotations[kube.PublicKeyAnnotation] = key
	return &c
}

func (p *Pins) refuse(n *corev1.Node, said string) {
	what := fmt.Sprintf("the node's key has changed to %s", said)
	if said == "" {
		what = "the node's key has vanished"
	}
	p.problems = append(p.problems, kube.Problem{
		Severity: kube.Error, Object: kube.RefOf(n), Field: "metadata.annotations[" + kube.PublicKeyAnnotation + "]",
		Message: what + ", and nothing guards who may change it, so the one that was seen first stays in use: install the ValidatingAdmissionPolicy " +
			Guard + ", or, if the change is meant, delete the Node object and restart its kubelet, which makes it anew",
	})
}

func (p *Pins) save() {
	data, err := json.MarshalIndent(p.known, "", "\t")
	if err == nil {
		err = servers.WriteFile(p.file, data)
	}
	if p.unsaved = err != nil; p.unsaved {
		p.problems = append(p.problems, kube.Problem{
			Severity: kube.Warning, Object: kube.Ref{Kind: "Node"},
			Message: fmt.Sprintf("the keys of the nodes cannot be kept over a restart of the agent: %v: make room or give it rights there", err),
		})
	}
}
