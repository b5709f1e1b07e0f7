package saved

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"tapestry.dev/tapestry/kube"
)

// Version is the version of the format, and of what package strip leaves of objects: it changes with both. A test in
// package cluster says when.
const Version = 9

// first begins the first line of the file; the version ends it.
const first = "tapestry-objects "

// maxBytes limits a file. Of a snapshot that is larger, the pods of other nodes are not kept.
const maxBytes = 256 << 20

// Owner says whose snapshot a file is.
type Owner struct {
	// Node is the name of the node; of Pods, a snapshot has that node's, and OtherPods are those of others.
	Node string `json:"node"`
	// Cluster identifies the cluster.
	Cluster string `json:"cluster"`
}

// header follows the first line, as JSON in a line of its own.
type header struct {
	Owner
	// Kinds are the names of the kinds whose objects follow, all of them. An object names its kind by the index.
	Kinds []string `json:"kinds"`
}

// message is an object of a type generated for protobuf.
type message interface {
	Size() int
	MarshalToSizedBuffer([]byte) (int, error)
	Unmarshal([]byte) error
}

// messageOf returns an object as what is kept of it.
func messageOf(obj kube.Object) message {
	if m, ok := obj.(message); ok {
		return m
	}
	return &asJSON{obj: obj}
}

// asJSON is an object whose type has no form in protobuf.
type asJSON struct {
	obj  kube.Object
	data []byte // once its size was asked for
	err  error
}

// Size returns the size of the object as JSON.
func (j *asJSON) Size() int {
	j.data, j.err = json.Marshal(j.obj)
	return len(j.data)
}

// MarshalToSizedBuffer copies the object, whose size was asked for, to the end of b.
func (j *asJSON) MarshalToSizedBuffer(b []byte) (int, error) {
	return copy(b[len(b)-len(j.data):], j.data), j.err
}

// Unmarshal reads the object.
func (j *asJSON) Unmarshal(data []byte) error { return json.Unmarshal(data, j.obj) }

var errTooLarge = fmt.Errorf("it is larger than %d MiB", maxBytes>>20)

// encode writes objs, of which it takes the objects of the kinds, and returns how many bytes it wrote: no more than
// most, or the error wraps errTooLarge.
func encode(out io.Writer, owner Owner, kinds []*kube.Kind, objs *kube.Objects, most int64) (written int64, err error) {
	sum := sha256.New()
	to := &limited{to: bufio.NewWriterSize(out, 1<<16), most: most}
	w := io.MultiWriter(to, sum)
	h := header{Owner: owner}
	index := map[*kube.Kind]uint64{}
	for i, k := range kinds {
		h.Kinds, index[k] = append(h.Kinds, k.Name), uint64(i)
	}
	head, err := json.Marshal(h)
	if err != nil {
		return 0, err
	}
	if _, err := fmt.Fprintf(w, "%s%d\n%s\n", first, Version, head); err != nil {
		return 0, err
	}
	var buf []byte
	for obj := range objs.All() {
		i, kept := index[kube.KindOf(obj)]
		if !kept {
			continue
		}
		m := messageOf(obj)
		size := m.Size()
		buf = binary.AppendUvarint(binary.AppendUvarint(buf[:0], i), uint64(size))
		at := len(buf)
		buf = slices.Grow(buf, size)[:at+size]
		if _, err := m.MarshalToSizedBuffer(buf[at:]); err != nil {
			return 0, fmt.Errorf("%s: %w", kube.RefOf(obj), err)
		}
		if _, err := w.Write(buf); err != nil {
			return 0, err
		}
	}
	if _, err := to.Write(sum.Sum(nil)); err != nil {
		return 0, err
	}
	return to.n, to.to.Flush()
}

// limited counts what is written, and writes no more than a limit.
type limited struct {
	to      *bufio.Writer
	n, most int64
}

func (l *limited) Write(b []byte) (int, error) {
	if l.n+int64(len(b)) > l.most {
		return 0, errTooLarge
	}
	n, err := l.to.Write(b)
	l.n += int64(n)
	return n, err
}

var errDamaged = errors.New("it is damaged")

// decode returns the objects of a file for owner, sorted. The file must have all kinds; objects of others are left
// out. Nothing that is returned refers to data.
func decode(data []byte, owner Owner, kinds []*kube.Kind) (kube.Objects, error) {
	none := kube.Objects{}
	line, rest, ok := bytes.Cut(data, []byte("\n"))
	version, ours := strings.CutPrefix(string(line), first)
	if !ok || !ours {
		return none, errDamaged
	}
	if version != fmt.Sprint(Version) {
		return none, fmt.Errorf("it has version %.20q of the format, and this agent reads version %d", version, Version)
	}
	if len(rest) < sha256.Size {
		return none, errDamaged
	}
	body := data[:len(data)-sha256.Size]
	if sum := sha256.Sum256(body); !bytes.Equal(sum[:], data[len(body):]) {
		return none, errDamaged
	}
	head, objects, ok := bytes.Cut(body[len(line)+1:], []byte("\n"))
	var h header
	if !ok || json.Unmarshal(head, &h) != nil {
		return none, errDamaged
	}
	switch {
	case h.Node != owner.Node:
		return none, fmt.Errorf("it is of node %q, and this is node %q", h.Node, owner.Node)
	case h.Cluster != owner.Cluster:
		return none, errors.New("it is of another cluster: the certificate of its authority, or its address, is not this one's")
	}
	for _, k := range kinds {
		if !slices.Contains(h.Kinds, k.Name) {
			return none, fmt.Errorf("it has no %s, which this agent reads", k.Plural)
		}
	}
	objs, err := decodeObjects(objects, h.Kinds, kinds)
	if err != nil {
		return none, err
	}
	objs.Sort()
	return objs, nil
}

// decodeObjects reads objects whose kinds are named by their index in names, and returns those of the kinds.
func decodeObjects(data []byte, names []string, kinds []*kube.Kind) (kube.Objects, error) {
	var all kube.Builder
	read := make([]*kube.Kind, len(names))
	for i, name := range names {
		if k := kube.KindNamed(name); slices.Contains(kinds, k) {
			read[i] = k
		}
	}
	for len(data) > 0 {
		i, n := binary.Uvarint(data)
		if n <= 0 || i >= uint64(len(read)) {
			return kube.Objects{}, errDamaged
		}
		size, m := binary.Uvarint(data[n:])
		if m <= 0 || size > uint64(len(data)-n-m) {
			return kube.Objects{}, errDamaged
		}
		end := n + m + int(size)
		if k := read[i]; k != nil {
			obj := k.New()
			if err := messageOf(obj).Unmarshal(data[n+m : end]); err != nil {
				return kube.Objects{}, fmt.Errorf("%w: %w", errDamaged, err)
			}
			all.Add(obj, "")
		}
		data = data[end:]
	}
	return all.Objects(), nil
}
