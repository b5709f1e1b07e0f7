package kube

import (
	"reflect"
	"strings"
	"testing"
)

// TestKinds checks that every list of Objects has exactly one row, and that all parts of a row agree.
func TestKinds(t *testing.T) {
	var objs Objects
	places := map[uintptr]string{} // by the address of the list
	v := reflect.ValueOf(&objs).Elem()
	for i := range v.NumField() {
		f := v.Type().Field(i)
		_, rolls := f.Type.MethodByName("At") // a list of package roll
		if rolls || f.Type.Kind() == reflect.Slice && f.Type.Elem().Kind() == reflect.Pointer {
			places[v.Field(i).Addr().Pointer()] = f.Name
		}
	}
	names, resources := map[string]bool{}, map[string]bool{}
	for _, k := range Kinds() {
		if names[k.Name] || k.resource == "" && resources[k.Resource()] {
			t.Errorf("there are two of %s or %s", k.Name, k.Plural)
		}
		names[k.Name], resources[k.Resource()] = true, true
		if KindNamed(k.Name) != k {
			t.Errorf("%s cannot be found by its name", k.Name)
		}
		if k.Name == "" || k.Group.Version == "" || !strings.HasPrefix(k.Plural, k.Name[:len(k.Name)-1]) || k.Use == 0 {
			t.Errorf("%s is not described whole: %+v", k.Name, k)
		}
		if k.Use&InFiles != 0 && k.Use&NotServed != 0 {
			t.Errorf("%s: a file may hold what is not served", k.Name)
		}
		if k.Held() != (k.Use&(InFiles|InCluster|InController) != 0) {
			t.Errorf("%s is for %b: Objects has a place for it: %v", k.Name, k.Use, k.Held())
		}
		if !k.Held() {
			continue
		}
		at := reflect.ValueOf(k.lists).Call([]reflect.Value{reflect.ValueOf(&objs)})[0]
		if places[at.Pointer()] == "" {
			t.Errorf("%s has the place of another kind", k.Name)
		}
		delete(places, at.Pointer())
		want := at.Elem().Type()
		if want.Kind() == reflect.Slice {
			want = want.Elem()
		} else { // a list of package roll
			want = reflect.ValueOf(at.Elem().Interface()).MethodByName("At").Type().Out(0)
		}
		if reflect.TypeOf(k.New()) != want {
			t.Errorf("%s makes a %T for a list of %s", k.Name, k.New(), want)
		}
	}
	for _, field := range places {
		t.Errorf("no kind has the list %s: add a row for it", field)
	}
}
