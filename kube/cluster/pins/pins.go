// Package pins decides what is believed of other nodes' Node objects.
//
// A kubelet writes the addresses of its own Node, and an agent writes the key. So whoever takes over a node can claim
// what belongs to another node, or to none. Three defences stand against that:
//
//   - Rules. A range that no node can have is refused, whoever claims it: a range of Services, an API server's address,
//     a cloud's metadata address, a public address among private ones, or one outside the ranges that the operator
//     named.
//   - Conflicts. What two nodes claim stays with the one that was believed before, else with the older Node. A later
//     claim, or one of a name earlier in the alphabet, takes nothing away.
//   - Keys. The first key seen in a Node object is believed for the life of the object (its UID). Another key is
//     believed only while the admission policy is in force that lets no token but that of the node's own agent change
//     it; otherwise the first key stays in use. Agents may not delete Nodes. So whoever deletes one is a person who may
//     decide that, and the Node that is created after it is judged anew.
//
// What was believed is kept in a file. What is refused is left out of the Node, and reported as a Problem of it.
package pins

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/cluster/servers"
)

// Pins holds what is believed of the nodes. Make it with Open. It is not safe for concurrent use.
type Pins struct {
	rules Rules
	file  string
	known map[string]pin // by the Node's name

	// The last answer, kept to return the same list for the same question.
	asked    Question
	judged   []*corev1.Node
	problems []kube.Problem
	copies   map[*corev1.Node]edited
	read     map[*corev1.Node]*said
	unsaved  bool
}

// Guard is the name of the ValidatingAdmissionPolicyBinding that keeps agents from changing other nodes' Nodes.
const Guard = "tapestry-agent-own-node"

// Question is the input of Judge.
type Question struct {
	// Nodes are sorted by name. Judge does not change them.
	Nodes []*corev1.Node
	// Guarded is set when only a node's own agent can change the node's key.
	Guarded bool
	// Services are the ranges of Services; Servers are the addresses of the API servers.
	Services []netip.Prefix
	Servers  []netip.Addr
	// Old is set for Nodes that are not the API server's present ones. They change nothing that was believed before.
	Old bool
}

func (q *Question) is(other *Question) bool {
	return kube.Same(q.Nodes, other.Nodes) && q.Guarded == other.Guarded && q.Old == other.Old &&
		slices.Equal(q.Services, other.Services) && slices.Equal(q.Servers, other.Servers)
}

// Open reads from file what was believed before. The returned Pins keeps the file up to date.
func Open(file string, r Rules) (*Pins, error) {
	p := &Pins{rules: r, file: file, known: map[string]pin{}}
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return p, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &p.known)
	}
	if err != nil { // to forget the keys silently is what an attacker would want
		return nil, fmt.Errorf("read the keys of other nodes: %w: repair or remove %s; removed, each node's key is believed as it is now", err, file)
	}
	return p, nil
}

// Judge returns the nodes as they are believed, and adds to problems what differs from the API server's objects. A
// Node that is believed entirely is returned as the same object.
func (p *Pins) Judge(q Question, problems *[]kube.Problem) []*corev1.Node {
	if p.judged == nil || p.unsaved || !q.is(&p.asked) {
		p.readAll(q.Nodes)
		verdicts, next := judge(&q, &p.rules, p.known, p.read)
		p.asked, p.problems = q, nil
		p.judged = p.edit(q.Nodes, verdicts)
		if !q.Old && (p.unsaved || !maps.Equal(next, p.known)) {
			p.known = next
			p.save()
		}
	}
	*problems = append(*problems, p.problems...)
	return p.judged
}

// readAll brings p.read up to date.
func (p *Pins) readAll(nodes []*corev1.Node) {
	read := make(map[*corev1.Node]*said, len(nodes))
	for _, n := range nodes {
		if read[n] = p.read[n]; read[n] == nil {
			read[n] = readNode(n)
		}
	}
	p.read = read
}

// verdict is what is not believed of a Node.
type verdict struct {
	key      string // the key that is believed, "" for none
	cidrs    []int  // refused indexes of spec.podCIDRs
	addrs    []int  // refused indexes of status.addresses
	problems []kube.Problem
}

// judge decides what is believed, from what was believed before and what the nodes claim. verdicts has the order of
// q.Nodes.
func judge(q *Question, r *Rules, known map[string]pin, read map[*corev1.Node]*said) (verdicts []verdict, next map[string]pin) {
	verdicts = make([]verdict, len(q.Nodes))
	at := make(map[*corev1.Node]int, len(q.Nodes))
	for i, n := range q.Nodes {
		at[n] = i
	}
	refuse := func(c *claim, message string) {
		v := &verdicts[at[c.node]]
		if c.pods {
			v.cidrs = append(v.cidrs, c.index)
		} else {
			v.addrs = append(v.addrs, c.index)
		}
		v.problems = append(v.problems, refusal(c.node, c.field(), message))
	}
	order := precedence{
		self:  r.Self,
		holds: func(c *claim) bool { was := known[c.node.Name]; return was.UID == c.node.UID && was.has(c) },
		hasKey: func(n *corev1.Node, key string) bool {
			was := known[n.Name]
			return was.UID == n.UID && keyID(was.Key) == keyID(key)
		},
	}
	for _, c := range decide(believable(q, r, read, refuse), order.claims) {
		refuse(c.lost, c.message())
	}
	keys := make([]string, len(q.Nodes))
	for i, n := range q.Nodes {
		keys[i] = keyOf(n, q.Guarded, known[n.Name], &verdicts[i])
	}
	lost := owners(q.Nodes, keys, &order)
	next = make(map[string]pin, len(q.Nodes))
	for i, n := range q.Nodes {
		v := &verdicts[i]
		if owner := lost[n]; owner != nil {
			v.problems = append(v.problems, refusal(n, keyField, "is the key of Node "+owner.Name+", which had it first, and is not believed here: every node needs a key of its own. "+
				"If both are one machine, delete the Node that is no more"))
			keys[i] = ""
		}
		v.key = keys[i]
		now := pin{UID: n.UID, Key: keys[i]}
		if was := known[n.Name]; now.Key == "" && was.UID == n.UID && q.Guarded && lost[n] == nil {
			now.Key = was.Key // the key that was believed last
		}
		now.Claims = read[n].without(v)
		if now.Key != "" || now.Claims != "" {
			next[n.Name] = now
		}
	}
	return verdicts, next
}

// believable returns the claims of all nodes that no rule forbids. It calls refuse for the others.
func believable(q *Question, r *Rules, read map[*corev1.Node]*said, refuse func(*claim, string)) []*claim {
	var own public
	for _, n := range q.Nodes {
		if n.Name == r.Self {
			own = publicOf(read[n].claims)
		}
	}
	list := make([]*claim, 0, 3*len(q.Nodes))
	for _, n := range q.Nodes {
		for _, c := range read[n].claims {
			why := ""
			if n.Name != r.Self {
				why = r.forbids(c, q, own)
			}
			if why != "" {
				refuse(c, why)
				continue
			}
			list = append(list, c)
		}
	}
	return list
}

const keyField = "metadata.annotations[" + kube.PublicKeyAnnotation + "]"

// keyOf returns the key that is believed of n, unless another node has the same key.
func keyOf(n *corev1.Node, guarded bool, was pin, v *verdict) string {
	said := n.Annotations[kube.PublicKeyAnnotation]
	if guarded || was.UID != n.UID || was.Key == "" || was.Key == said {
		return said
	}
	what := fmt.Sprintf("the node's key has changed to %s", said)
	if said == "" {
		what = "the node's key has vanished"
	}
	v.problems = append(v.problems, refusal(n, keyField, what+", and nothing guards who may change it, so the one that was seen first stays in use: install the ValidatingAdmissionPolicy "+
		Guard+", or, if the change is meant, delete the Node object and restart its kubelet, which makes it anew"))
	return was.Key
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
