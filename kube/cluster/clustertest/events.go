package clustertest

import (
	"bytes"
	"io"
	"net/http"
	"reflect"
	"strconv"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
)

// events writes the events of a watch.
type events struct {
	a       *answer
	frames  io.Writer
	encoder runtime.Encoder
}

func (a *answer) events() *events {
	a.w.Header().Set("Content-Type", a.info.MediaType+";stream=watch")
	a.w.WriteHeader(http.StatusOK)
	return &events{
		a: a, frames: a.info.StreamSerializer.Framer.NewFrameWriter(a.w),
		encoder: codecs.WithoutConversion().EncoderForVersion(a.info.StreamSerializer.Serializer, nil),
	}
}

func (e *events) send(kind watch.EventType, obj Object) {
	var inner bytes.Buffer
	out := obj.DeepCopyObject() // encoding sets the kind in the object
	if e.a.partial {
		out = asPartial(obj)
	}
	if e.a.encoder().Encode(out, &inner) != nil {
		return
	}
	var outer bytes.Buffer
	if e.encoder.Encode(&metav1.WatchEvent{Type: string(kind), Object: runtime.RawExtension{Raw: inner.Bytes()}}, &outer) == nil {
		_, _ = e.frames.Write(outer.Bytes()) // an error means that the client has gone
	}
}

// mark sends the bookmark that ends the initial events.
func (e *events) mark(list runtime.Object, version int64) {
	items := reflect.ValueOf(list).Elem().FieldByName("Items").Type().Elem()
	obj := reflect.New(items).Interface().(Object)
	obj.SetResourceVersion(strconv.FormatInt(version, 10))
	obj.SetAnnotations(map[string]string{metav1.InitialEventsAnnotationKey: "true"})
	e.send(watch.Bookmark, obj)
}

func (e *events) flush() {
	if f, ok := e.a.w.(http.Flusher); ok {
		f.Flush()
	}
}
